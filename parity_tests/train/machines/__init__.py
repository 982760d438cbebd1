"""Tests of `train/machines`."""
