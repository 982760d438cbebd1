"""What else can be asked of a run."""
