"""Which images, and in which order."""
