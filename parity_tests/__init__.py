"""The proof that the JAX and the PyTorch packages compute the same."""
