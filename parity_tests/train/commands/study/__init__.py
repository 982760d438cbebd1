"""Tests of `train/commands/study`."""
