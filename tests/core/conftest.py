"""One thread for the tiny matrices of these tests: more would only wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Read when torch is imported, also by subprocesses.
