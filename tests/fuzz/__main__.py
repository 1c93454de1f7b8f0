"""Fuzz the readers of strangers' models: `make fuzz`, or `python -m tests.fuzz --inputs 120000`.

Every input has a seed of its own, which is printed where something goes wrong; `--only SEED` runs
that input alone. The last line is `inputs=N crashed=0 hung=0`; the status is 1 if it is otherwise.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections import Counter
from types import FrameType
from typing import NoReturn

from tests.fuzz.targets import TARGETS, outcome_of

# A second is ages for a file of some kilobytes; machines that fuzz are busy.
HANG_SECONDS = 10.0


class Hung(BaseException):
    """An input took too long; no `except Exception` may swallow it."""


def _hung(number: int, frame: FrameType | None) -> NoReturn:
    raise Hung


def main() -> int:
    """Run all inputs; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="seed of one input: TARGET:SEED:NUMBER")
    options = parser.parse_args()
    if options.only:
        target = options.only.split(":")[0]
        sys.stdout.write(f"{outcome_of(TARGETS[target], options.only)}\n")
        return 0
    signal.signal(signal.SIGALRM, _hung)
    each = options.inputs // len(TARGETS)
    crashed, hung, slowest = 0, 0, 0.0
    for name, target in TARGETS.items():
        outcomes: Counter[str] = Counter()
        for number in range(each):
            seed = f"{name}:{options.seed}:{number}"
            began = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            try:
                outcomes[outcome_of(target, seed)] += 1
            except Hung:
                hung += 1
                sys.stdout.write(f"hung: --only {seed}\n")
            except Exception:
                crashed += 1
                sys.stdout.write(f"crashed: --only {seed}\n{traceback.format_exc()}\n")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - began)
        counts = ", ".join(f"{code} {count}" for code, count in outcomes.most_common())
        sys.stdout.write(f"{name}: {counts}\n")
        sys.stdout.flush()
    total = each * len(TARGETS)
    sys.stdout.write(f"slowest input {slowest:.2f} s\n")
    sys.stdout.write(f"inputs={total} crashed={crashed} hung={hung}\n")
    return 1 if crashed or hung else 0


if __name__ == "__main__":
    sys.exit(main())
