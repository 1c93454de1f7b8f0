"""Performance and quality claims, each with the command that reproduces it."""
