"""Tests of `train/commands`."""
