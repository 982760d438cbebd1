"""The flags of a run, by what they are about; `train.config` puts them together."""
