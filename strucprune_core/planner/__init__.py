"""How a job fits into memory: what each step holds, and the pieces that keep it below a limit."""
