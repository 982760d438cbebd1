"""Trains a network of dynamic convolutions: `python -m train --help`."""
