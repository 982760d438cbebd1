"""Speed, measured: interleaved rounds, medians, ratios within one run."""
