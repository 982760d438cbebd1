"""What may be asked of a run; `config.py` puts the flags of all subjects together."""
