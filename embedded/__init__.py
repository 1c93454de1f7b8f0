"""The whole stack on one machine, without Docker and without root: for the demo and for tests."""
