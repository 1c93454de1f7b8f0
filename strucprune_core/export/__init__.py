"""Layouts of the result, its exports for other runtimes, and loading without remote code."""
