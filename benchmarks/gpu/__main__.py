"""Checks the engine on a GPU, or prints plans for common ones where there is none.

    make gpu
    .venv/bin/python -m benchmarks.gpu [--parts families memory ...] [--json FILE]

With a GPU it takes at most eight minutes, and ends with 1 if a part failed or was cut. Each run
begins the file anew, and what a part finds is written to it at once. Figures that miss their bar
are marked there, and do not fail the command.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.requirements import complaint, missing

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
MEMORY_FILES, MEMORY_FILES_NEEDED = Path("/dev/shm"), 32 * 2**30


def main(arguments: list[str]) -> int:
    """Run it."""
    lacking = missing()
    if lacking:
        print(complaint(lacking), file=sys.stderr)
        return 1
    import torch

    from benchmarks.gpu.parts import PARTS, run_part
    from benchmarks.gpu.plans import plans_text
    from benchmarks.gpu.record import Record

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    # To try the command itself without a GPU: the shapes are made for one.
    parser.add_argument("--device", choices=("cpu", "cuda"), help=argparse.SUPPRESS)
    # Of a part's process: the part, and an empty folder.
    parser.add_argument("--one", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        print("No GPU is available to this process, so nothing was measured.\n")
        print(plans_text())
        return 0
    if options.one:
        part, folder = options.one
        run_part(part, device, Path(folder), Record(options.json))
        return 0
    return _all(options.parts, device, options.json)


def _all(parts: list[str], device: str, path: Path) -> int:
    from benchmarks.gpu.parts import PARTS
    from benchmarks.gpu.record import Record
    from benchmarks.gpu.supervise import supervise

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    record = Record(path)
    record.begin(_about(device))
    cut = []
    for name in parts:
        # Made here: a process that is killed would leave it behind.
        with tempfile.TemporaryDirectory(prefix="strucprune-gpu-", dir=_roomy()) as folder:
            command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, folder]
            command += ["--device", device, "--json", str(path)]
            status = supervise(command, name, PARTS[name].limit_seconds, record)
        print(f"{name}: {status}, {record.read()['parts'][name]['seconds']} s", flush=True)
        cut += [name] if status != "done" else []
    print(path.read_text(encoding="utf-8"))
    return int(bool(cut))


def _roomy() -> Path | None:
    """Files in memory where there is room for them, else the system's temporary directory."""
    try:
        free = shutil.disk_usage(MEMORY_FILES).free
    except OSError:
        return None
    return MEMORY_FILES if free >= MEMORY_FILES_NEEDED else None


def _about(device: str) -> dict[str, Any]:
    from datetime import UTC, datetime  # Here: Python 3.10, which is refused, has no UTC.

    import torch
    import transformers

    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device if gpu is None else gpu.name,
        "device_memory_bytes": None if gpu is None else gpu.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
