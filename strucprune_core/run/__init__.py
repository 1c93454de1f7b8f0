"""Doing a job: its units, their files, and publishing the result."""
