"""What tests share: cases, networks, references, runs."""
