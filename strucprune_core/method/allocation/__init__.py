"""Between layers: one global target becomes a width for each layer."""
