"""Architectures: a parser of config.json for each family, and one streamed forward pass for all."""
