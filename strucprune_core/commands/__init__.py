"""Commands about a service, and what all commands share. No torch."""
