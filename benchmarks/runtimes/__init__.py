"""Loads pruned checkpoints and their exports in real runtimes: `make runtimes`.

`inside/` runs in the runtimes' own environments; everything else in this project's.
"""
