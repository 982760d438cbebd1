"""Tests of `train/storage`."""
