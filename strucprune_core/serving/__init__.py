"""Serving pruned models: what other engines need to load `per_layer` checkpoints."""
