"""Does a page of the job list cost the same at any depth, and with any number of jobs?

    .venv/bin/python -m benchmarks.paging [--jobs 100000]

Enters jobs of one tenant into a real Valkey through the ledger, then fetches pages of 100 at the
list's beginning, middle and end, plain and with filters, and prints the median time of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from api.jobs.ledger import Ledger, connect
from api.jobs.record import NewJob, Page
from api.jobs.state import JobState
from embedded.valkey import ValkeyServer

PAGE = 100
REPEATS = 30
TENANT = "acme"
# Jobs that every tenth and every thousandth job's label finds.
TENTH, RARE = ("team", "nlp"), ("model", "rare")
SPEC = {
    "model": {"uri": "s3://work/models/smollm2-135m"},
    "output": {"uri_prefix": "s3://work/pruned/x"},
    "pruning": {"sparsity": 0.3},
    "calibration": {"uri": "s3://work/text/calibration.txt"},
}


def enter(ledger: Ledger, number: int) -> None:
    """Enter one job."""
    labels = {}
    if number % 10 == 0:
        labels[TENTH[0]] = TENTH[1]
    if number % 1000 == 0:
        labels[RARE[0]] = RARE[1]
    ledger.create(
        NewJob(
            id=f"job_{number:032x}",
            tenant=TENANT,
            fingerprint="f" * 64,
            created_at=1_700_000_000 + number,
            spec=SPEC,
            labels=labels,
        )
    )


def walk(ledger: Ledger, pages: int) -> list[str | None]:
    """The cursors of the first pages."""
    cursors: list[str | None] = [None]
    while len(cursors) < pages:
        page = ledger.list(TENANT, limit=PAGE, cursor=cursors[-1])
        if page.next_cursor is None:
            break
        cursors.append(page.next_cursor)
    return cursors


def milliseconds(fetch: Callable[[], Page]) -> tuple[float, int]:
    """Median time of a page, and the jobs on it."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        page = fetch()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times), len(page.jobs)


def main() -> None:
    """Print a line for each kind of page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paging", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as name, ValkeyServer(Path(name)) as server:
        ledger = connect(server.url)
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: enter(ledger, number), range(jobs)))
        sys.stdout.write(f"{jobs} jobs entered in {time.perf_counter() - began:.0f} s\n")
        cursors = walk(ledger, jobs // PAGE)
        places = {"first": 0, "middle": len(cursors) // 2, "last": -1}
        filters = {
            "all": {},
            "queued": {"state": JobState.QUEUED},
            "a tenth": {"label": TENTH},
            "a thousandth": {"label": RARE},
        }
        for kind, chosen in filters.items():
            for place, index in places.items():
                cursor = cursors[index]
                median, found = milliseconds(
                    lambda cursor=cursor, chosen=chosen: ledger.list(  # type: ignore[misc]
                        TENANT, limit=PAGE, cursor=cursor, **chosen
                    )
                )
                line = f"{kind:14}{place:8}{found:5} jobs {median:8.2f} ms\n"
                sys.stdout.write(line)
        ledger.close()


if __name__ == "__main__":
    main()
