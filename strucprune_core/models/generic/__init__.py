"""Models that run in transformers' own modules: any decoder that it has, one layer at a time."""
