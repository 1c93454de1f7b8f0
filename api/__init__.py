"""The REST service: accepts pruning jobs, keeps their state, and shows their results."""
