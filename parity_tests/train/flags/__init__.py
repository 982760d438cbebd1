"""Tests of `train/flags`."""
