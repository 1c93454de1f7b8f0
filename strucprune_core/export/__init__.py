"""Code that travels with checkpoints, and loading them without trusting that code."""
