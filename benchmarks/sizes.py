"""What three sizes cost against one: SmolLM2-135M, with evaluation, in turns in one run.

    make model
    .venv/bin/python -m benchmarks.sizes [--sizes 0.2 0.3 0.5] [--rounds 1] [--json FILE]

Each round runs the job of the middle size alone and the job of all sizes, each in a process of its
own. Prints seconds from start to end and processor seconds, and their ratios. The result of the
middle size must be the same bytes both ways.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.output import write_result
from embedded.model import ensure_model
from embedded.text import ensure_texts
from strucprune_core.storage.digests import sha256_of

_LAYOUT = ["--samples", "32", "--sequence-length", "512"]


@dataclass(frozen=True)
class Cost:
    """Seconds from start to end, and of the processor."""

    wall: float
    processor: float


def run(sizes: Sequence[str], output: Path) -> Cost:
    """Prune to these sizes in a process of its own."""
    texts = ensure_texts()
    option = ["--sparsity", sizes[0]] if len(sizes) == 1 else []
    if len(sizes) > 1:
        option = [word for size in sizes for word in ("--size", size)]
    command = [sys.executable, "-m", "strucprune_core.commands.main", "prune", str(ensure_model())]
    command += ["--output", str(output), *option, *_LAYOUT]
    command += ["--calibration", str(texts.calibration), "--evaluation", str(texts.evaluation)]
    command += ["--evaluation-sequences", "12"]  # The text has no more.
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.monotonic() - began, processor)


def main() -> int:
    """Run the benchmark; 1 if the results differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes")
    parser.add_argument("--sizes", nargs="+", default=["0.2", "0.3", "0.5"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    middle = options.sizes[len(options.sizes) // 2]
    one: list[Cost] = []
    several: list[Cost] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            one.append(run([middle], root / "one"))
            several.append(run(options.sizes, root / "several"))
            files = [root / "one", root / "several" / middle]
            same = len({sha256_of(each / "model.safetensors") for each in files}) == 1
        if not same:
            print("the results differ", file=sys.stderr)
            return 1
    found = {
        "sizes": options.sizes,
        "one": [asdict(each) for each in one],
        "several": [asdict(each) for each in several],
        "wall_ratio": _ratio([each.wall for each in one], [each.wall for each in several]),
        "processor_ratio": _ratio(
            [each.processor for each in one], [each.processor for each in several]
        ),
    }
    print(json.dumps(found, indent=2))
    write_result(options.json, found)
    return 0


def _ratio(one: list[float], several: list[float]) -> float:
    return round(statistics.median(several) / statistics.median(one), 3)


if __name__ == "__main__":
    sys.exit(main())
