"""Webhooks: messages to a tenant's own server about what happened to a job."""
