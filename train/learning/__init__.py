"""What is computed in a step."""
