"""The REST service: accepts pruning jobs, keeps their state, and serves their results."""
