"""Tests of which networks checkpoints are of, a family a file."""
