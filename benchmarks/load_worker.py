"""A worker whose solve is trivial, so that only the service's own work is measured.

python -m benchmarks.load_worker [SECONDS]

SECONDS: how long a solve takes; it only sleeps.
"""

from __future__ import annotations

import sys

from worker.__main__ import main

RESULT = '{"type": "result", "summary": {}}'


def solve(seconds: str) -> tuple[str, ...]:
    """As cheap as a process can be: it reads its request, a line, and has succeeded."""
    return ("/bin/sh", "-c", f"read -r request; sleep {float(seconds)}; echo '{RESULT}'")


if __name__ == "__main__":
    main(solve(sys.argv.pop(1) if len(sys.argv) > 1 else "0"))
