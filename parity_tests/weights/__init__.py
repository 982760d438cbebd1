"""Tests of weights: their layout, files and surgery."""
