"""Bytes that each step of a job holds, by formula. No torch."""
