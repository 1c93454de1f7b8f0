"""Architectures: config parsing, one adapter per family, and the streamed forward pass."""
