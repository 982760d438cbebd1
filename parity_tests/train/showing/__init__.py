"""Tests of `train/showing`."""
