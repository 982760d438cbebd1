"""What one looks at while a run goes on and after it."""
