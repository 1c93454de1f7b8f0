"""Webhooks: telling a tenant's own server what happened to a job."""
