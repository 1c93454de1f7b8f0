"""Judging models: perplexity, and the checks against transformers."""
