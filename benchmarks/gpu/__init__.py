"""The check that runs where there is a GPU: `make gpu`, or `python -m benchmarks.gpu`.

Without a GPU it prints the plans of some jobs for common GPUs. With one it runs its parts, each in
a process of its own with a limit of time, and keeps what each has found as soon as it is known.
Nothing is downloaded: models are made on the spot, with random weights.
"""
