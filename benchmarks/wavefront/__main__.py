"""What 2, 4, 16 and 64 workers make of one job, by a simulation of its graph.

    .venv/bin/python -m benchmarks.wavefront [--record] [--json FILE]

For SmolLM2-135M units take what they took in a run by one worker on one core, which `--record`
runs again (`results/unit_seconds.json`: seconds of the processor, so that other load does not
count). For 7B, 70B and 405B shapes they take what is predicted for a GPU. Bandwidth and latency of
storage are assumptions, which are printed. `benchmarks.helping` measures two workers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import raw_of
from benchmarks.helping import whole_job
from benchmarks.output import write_result
from benchmarks.wavefront.shapes import predicted_work, work_of
from benchmarks.wavefront.simulate import Storage, Work, simulate
from strucprune_core.models.families import parse_config
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.spec import JobSpec

TIMES = Path(__file__).parent.parent / "results" / "unit_seconds.json"
WORKERS = (2, 4, 16, 64)
SHAPES = ("llama-7b", "llama-3-70b", "llama-3-405b")
# A local server, as `benchmarks.helping` starts one; its work is done by the same two cores.
LOCAL = Storage(bytes_per_second=4e8, latency_seconds=0.005)
# An object store near the workers.
NEAR = Storage(bytes_per_second=1e9, latency_seconds=0.03)
# From a call for help to the first unit: a process starts, loads torch, and reads the headers.
LOCAL_START_SECONDS, GPU_START_SECONDS = 6.0, 20.0
# Rates that passes, curves and solves reach on an H200-class GPU: some 40 % of its data sheet's.
GPU = DeviceRates(
    device="H200 class",
    kind="cuda",
    threads=8,
    products={
        "bfloat16": {4096: 400e12},
        "tf32": {4096: 200e12},
        "float32": {4096: 27e12},
        "float64": {4096: 27e12},
    },
    memory_bytes_per_second=4e12,
    read_bytes_per_second=NEAR.bytes_per_second,
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wavefront", description=__doc__)
    parser.add_argument("--record", action="store_true", help="run SmolLM2 for its units' times")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()
    if options.record:
        from benchmarks.wavefront.record import record  # It loads torch.

        with tempfile.TemporaryDirectory() as name:
            TIMES.write_text(json.dumps(record(Path(name)), indent=1) + "\n", encoding="utf-8")
    result = {"smollm2-135m": _courses(smollm2(), LOCAL, LOCAL_START_SECONDS)}
    for shape in SHAPES:
        result[shape] = _courses(of_shape(shape), NEAR, GPU_START_SECONDS)
    sys.stdout.write(_table(result))
    write_result(options.json, result)


def smollm2() -> Work:
    """The job of `benchmarks.helping`, with recorded times."""
    spec = JobSpec.model_validate(whole_job("simulated", 2))
    seconds: dict[str, float] = json.loads(TIMES.read_text(encoding="utf-8"))
    return work_of(spec, parse_config(raw_of("smollm2-135m")), seconds)


def of_shape(name: str) -> Work:
    """A job that prunes and evaluates a shape on a GPU, with 128 x 2,048 tokens."""
    text = {"uri": "s3://bucket/text", "sequence_length": 2048}
    spec = JobSpec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "output": {"uri_prefix": "s3://bucket/out"},
            "pruning": {"sparsity": 0.3},
            "calibration": {**text, "samples": 128},
            "evaluation": {**text, "sequences": 64},
            "runtime": {"device": "cuda", "device_memory_bytes": 130 * 2**30},
        }
    )
    return predicted_work(spec, parse_config(raw_of(name)), GPU)


def _courses(work: Work, storage: Storage, starting_seconds: float) -> dict[str, Any]:
    """Of each number of workers: seconds and efficiency, with and without following."""
    alone = simulate(work, storage, 1)
    found: dict[str, Any] = {
        "storage": asdict(storage),
        "starting_seconds": starting_seconds,
        "chunks": work.chunks,
        "1": {"seconds": round(alone.seconds, 1)},
    }
    for workers in WORKERS:
        together = simulate(work, storage, workers, starting_seconds)
        waiting = simulate(work, storage, workers, starting_seconds, follow=False)
        found[str(workers)] = {
            "seconds": round(together.seconds, 1),
            "efficiency": round(alone.seconds / together.seconds / workers, 3),
            "seconds_without_following": round(waiting.seconds, 1),
        }
    return found


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'shape':14}{'workers':>8}{'seconds':>10}{'efficiency':>12}{'not following':>15}"]
    for shape, found in result.items():
        storage = found["storage"]
        lines.append(
            f"{shape:14}{1:8}{found['1']['seconds']:10.1f}"
            f"      ({storage['bytes_per_second'] / 1e9:g} GB/s and "
            f"{storage['latency_seconds'] * 1e3:g} ms a worker, {found['chunks']} chunks)"
        )
        for workers in WORKERS:
            each = found[str(workers)]
            lines.append(
                f"{'':14}{workers:8}{each['seconds']:10.1f}{each['efficiency']:12.2f}"
                f"{each['seconds_without_following']:15.1f}"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
