"""Checkpoints as data: headers and layout (no torch), and reading and writing weights (torch)."""
