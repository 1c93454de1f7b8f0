"""How much helpers speed a job up: one job, done by one worker and by several.

    make model
    .venv/bin/python -m benchmarks.helping [--workers 2] [--rounds 3] [--json FILE]

Starts the whole product on this machine with WORKERS workers of one thread each. They share no core
as long as there are as many cores. Prunes SmolLM2-135M as the demo does, with its whole evaluation,
with `max_workers` 1 and WORKERS in turns. Prints medians of the seconds from start to end, from
each phase of the job to the next, and of the efficiency of a round: what one worker takes, divided
by what WORKERS take together. All runs must give the same bytes. The load of the machine is printed
too: on a busy one, these figures say nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.output import tell, write_result
from embedded.demo import job_spec, upload
from embedded.model import ensure_model
from embedded.stack import Stack
from embedded.text import ensure_texts
from strucprune_core.client import StrucPruneClient

_TOTAL = "start to end"


def whole_job(output: str, max_workers: int) -> dict[str, Any]:
    """The demo's job, on a CPU."""
    spec = job_spec(output)
    spec["runtime"] = {"device": "cpu", "max_workers": max_workers}
    return spec


def measure(
    client: StrucPruneClient, max_workers: int, round_: int
) -> tuple[dict[str, float], dict[str, str], int]:
    """Run a job: seconds in each phase, digests of what it published, most workers seen."""
    job = client.submit(whole_job(f"helping/{max_workers}-{round_}", max_workers))
    most, phase, phase_at = 1, "", 0.0
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in client.events(job.id):
        most = max(most, int(event.data.get("workers", 1)))
        if event.type == "progress" and event.data["phase"] != phase:
            if phase:
                seconds[phase] += event.at.timestamp() - phase_at
            phase, phase_at = event.data["phase"], event.at.timestamp()
    job = client.get(job.id)
    if job.state != "succeeded" or job.started_at is None or job.finished_at is None:
        raise RuntimeError(f"the job {job.state}: {job.error}")
    seconds[_TOTAL] = (job.finished_at - job.started_at).total_seconds()
    files = client.artifacts(job.id)
    weights = {file.name: file.sha256 for file in files if file.name.endswith(".safetensors")}
    return dict(seconds), weights, most


def run(workers: int, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """All jobs; the result."""
    model, texts = ensure_model(), ensure_texts()
    found: dict[int, list[dict[str, float]]] = {1: [], workers: []}
    published: list[dict[str, str]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        Stack(Path(name), workers=workers, settings={"OMP_NUM_THREADS": "1"}) as stack,
        stack.client() as client,
    ):
        upload(stack, model, texts)
        for round_ in range(rounds):
            for max_workers, seconds in found.items():
                each, weights, most = measure(client, max_workers, round_)
                seconds.append(each)
                published.append(weights)
                tell(
                    f"round {round_ + 1}, at most {max_workers} workers, {most} seen: "
                    f"{each[_TOTAL]:.1f} s (load {os.getloadavg()[0]:.1f})"
                )
    if any(weights != published[0] for weights in published):
        raise RuntimeError("the results differ")
    # A phase that is over between two heartbeats is not seen.
    names = {name for seconds in found.values() for each in seconds for name in each}
    medians = {
        count: {name: statistics.median(each.get(name, 0.0) for each in seconds) for name in names}
        for count, seconds in found.items()
    }
    alone, together = medians[1], medians[workers]
    tell(f"{'':14}{'1 worker, s':>13}{f'{workers} workers, s':>14}{'ratio':>8}")
    for name, seconds_alone in sorted(alone.items(), key=lambda item: -item[1]):
        ratio = together[name] / seconds_alone if seconds_alone else float("nan")
        tell(f"{name:14}{seconds_alone:13.1f}{together[name]:14.1f}{ratio:8.2f}")
    efficiencies = [
        alone[_TOTAL] / together[_TOTAL] / workers
        for alone, together in zip(found[1], found[workers], strict=True)
    ]
    efficiency = statistics.median(efficiencies)
    tell(f"efficiency {efficiency:.2f} ({', '.join(f'{each:.2f}' for each in efficiencies)})")
    return {
        "workers": workers,
        "rounds": rounds,
        "seconds": medians,
        "efficiency": efficiency,
        "efficiencies": efficiencies,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.helping", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()

    result = run(options.workers, options.rounds, tell)
    write_result(options.json, result)


if __name__ == "__main__":
    main()
