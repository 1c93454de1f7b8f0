"""The work of each unit, one file per kind."""
