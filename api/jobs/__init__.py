"""Job life cycle without a web framework; the only part of `api` that `worker` imports."""
