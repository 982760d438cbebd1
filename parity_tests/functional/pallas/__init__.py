"""Tests of the pure functions, and of every form of the convolution."""
