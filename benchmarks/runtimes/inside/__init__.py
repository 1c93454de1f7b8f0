"""What runs inside a runtime's own environment: the standard library, NumPy and the runtime."""
