"""API keys of the service: how they are made, and where their records are kept. No torch."""
