"""Chaos: real processes, many small jobs, and everything that can go wrong. `make chaos`, or

    python -m tests.chaos --faults 200 --seed 0

Valkey, an object store, API, reconciler and three workers run while faults are injected at random
instants: processes are killed, drained or frozen past their lease, Valkey is killed or emptied,
doorbells are lost or doubled, cancellations race with commits, the object store is cut off or
breaks off, Valkey and disks are full for a while, clocks jump, and a greedy tenant submits all that
it may. What ends is started again; customers submit jobs all the while, first one by one, so that
idle workers help with each, then in crowds, and retry those that failed for want of attempts. Then
everything is mended, and what became of each job is read from the
journal, the object store and the API:

lost        accepted, and now unknown, unjournalled, or ended in a way that it should not: failed
            for a reason of its own, cancelled unasked; or refused, with nothing wrong in it
duplicated  one submission that became two jobs; an end that was changed, or that journal and API
            tell differently; a run that a worker took after its end
corrupted   a published checkpoint that is not, byte for byte, that of an undisturbed run of the
            same job, or not what its manifest says; a file of anything else in the output
stuck       not over although nothing has been broken for two minutes

The last line is `faults=N lost=0 duplicated=0 corrupted=0 stuck=0`; the status is 1 if it is
otherwise, and the directory with all logs then stays.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.orders import KINDS
from tests.chaos.run import run

_WORKERS = 3


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--at-once", type=int, default=16, help="jobs that are open at a time")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="strucprune-chaos-"))

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    outcome = run(
        directory,
        seed=options.seed,
        faults=options.faults,
        kinds=[*KINDS],
        at_once=options.at_once,
        workers=_WORKERS,
        tell=tell,
    )
    for complaint in outcome.verdict.lines():
        tell(complaint)
    tell(", ".join(f"{name} {count}" for name, count in sorted(outcome.faults.items())))
    ends = ", ".join(f"{count} {state}" for state, count in sorted(outcome.ends.items()))
    tell(f"{outcome.jobs} jobs: {ends}")
    tell(f"{outcome.shared} jobs for several workers, {outcome.helped} seen with more than one")
    if outcome.verdict.good:
        shutil.rmtree(directory)
    else:
        tell(f"data and logs: {directory}")
    tell(outcome.line)
    return 0 if outcome.verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
