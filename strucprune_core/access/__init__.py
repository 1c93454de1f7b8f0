"""API keys of the service: how they are made, and where they are kept. No torch."""
