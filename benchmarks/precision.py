"""What bfloat16 does to a job, and float32 to its curves and repairs, on a CPU.

    .venv/bin/python -m benchmarks.precision .cache/models/smollm2-135m

Two jobs differ in `runtime.precision` alone. They are compared by the perplexity of the dense and
the pruned model, and by the channels that each layer keeps. Then damage curves and repairs of some
layers are computed in float64 and in float32, from statistics of the same text. `--part` does one
of both; the other's results stay. The text is that of the demo (`embedded.text`), or what is given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from embedded.text import ensure_texts
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import Stopped
from strucprune_core.method.layer.damage_curve import DamageCurve, damage_curve
from strucprune_core.method.layer.ridge import default_damping, ridge_into
from strucprune_core.method.linalg.matrices import DeviceMatrix, Room
from strucprune_core.models.families import parse_config
from strucprune_core.models.structures import Site, sites
from strucprune_core.models.tensors import tensor_name
from strucprune_core.pipeline import prune
from strucprune_core.report.document import Report
from strucprune_core.run.artifacts import Capture
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore

RESULTS = Path(__file__).parent / "results/precision.json"
PRECISIONS = ("float32", "bfloat16")
CPU = torch.device("cpu")


def main() -> None:
    """Run both jobs, compare, write the results."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="precision.") as scratch:
        root = Path(options.directory or scratch)
        if options.part in ("jobs", "both"):
            reports = {each: _job(options, each, root) for each in PRECISIONS}
            _keep(
                {
                    **_about(options),
                    "environment": reports["float32"].environment.model_dump(),
                    "jobs": {each: _figures(report) for each, report in reports.items()},
                    "bfloat16_against_float32": compared(*reports.values()),
                }
            )
        if options.part in ("solves", "both"):
            _keep({**_about(options), "solves": solves(options, root)})


def _about(options: argparse.Namespace) -> dict[str, Any]:
    names = ("sparsity", "samples", "sequences", "length")
    return {
        "command": "python -m benchmarks.precision",
        "model": Path(options.model).name,
        "settings": {name: getattr(options, name) for name in names},
    }


def _keep(found: dict[str, Any]) -> None:
    """Replace a part of the results."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    text = json.dumps(before | found, indent=2)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, help="text; by default the demo's")
    parser.add_argument("--evaluation", type=Path, help="text; by default the demo's")
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--every", type=int, default=3, help="solve one layer of so many")
    parser.add_argument("--part", choices=("jobs", "solves", "both"), default="both")
    parser.add_argument("--directory", help="for workspaces; a job that was cut continues there")
    return parser


@dataclass(frozen=True)
class _OnceThere:
    """Stops a job once a file is there."""

    file: Path

    def check(self) -> None:
        """Stop, or not.

        Raises:
            Stopped: it is there.
        """
        if self.file.exists():
            raise Stopped("asked to")


def _job(
    options: argparse.Namespace, precision: str, root: Path, until: Path | None = None
) -> Report:
    texts = ensure_texts(root / "text")
    spec = JobSpec.model_validate(
        {
            "model": {"uri": str(options.model)},
            "output": {"uri_prefix": str(root / precision / "out")},
            "pruning": {"sparsity": options.sparsity},
            "calibration": {
                "uri": str(options.calibration or texts.calibration),
                "samples": options.samples,
                "sequence_length": options.length,
            },
            "evaluation": {
                "uri": str(options.evaluation or texts.evaluation),
                "sequences": options.sequences,
                "sequence_length": options.length,
                "max_perplexity_ratio": 100,
            },
            "runtime": {"device": "cpu", "precision": precision},
        }
    )
    return prune(
        spec,
        workspace=LocalStore(root / precision / "workspace"),
        scratch=root / precision / "scratch",
        open_store=lambda uri: LocalStore(Path(uri)),
        stop=None if until is None else _OnceThere(until),
    )


def _figures(report: Report) -> dict[str, Any]:
    assert report.perplexity is not None
    dense, pruned = report.perplexity.before, report.perplexity.after
    widths = [site.structures_after for layer in report.layers for site in layer.sites]
    seconds = sum(phase.seconds for phase in report.phases)
    return {
        "precision": report.environment.precision,
        "dense_perplexity": dense,
        "pruned_perplexity": pruned,
        "ratio": pruned / dense,
        "widths": widths,
        "seconds": round(seconds),
    }


def compared(wide: Report, narrow: Report) -> dict[str, float]:
    """How far the second job is from the first."""
    one, other = _figures(wide), _figures(narrow)
    moved = sum(abs(a - b) for a, b in zip(one["widths"], other["widths"], strict=True)) / 2
    before = sum(site.structures_before for layer in wide.layers for site in layer.sites)
    return {
        "dense_perplexity_change": other["dense_perplexity"] / one["dense_perplexity"] - 1.0,
        "pruned_perplexity_change": other["pruned_perplexity"] / one["pruned_perplexity"] - 1.0,
        "ratio_change": other["ratio"] / one["ratio"] - 1.0,
        "widths_moved_share": moved / (before - sum(one["widths"])),
    }


def solves(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Curves and repairs in float64 and in float32, from what a job has captured."""
    index = open_checkpoint(LocalStore(Path(options.model)))
    config = parse_config(json.loads(index.config_bytes))
    reader, rows = TensorReader(index), []
    tokens = options.samples * options.length
    root = root / "statistics"
    units = root / PRECISIONS[0] / "workspace/units"
    solved = range(0, config.layers, options.every)
    last = units / Capture(solved[-1]).unit / "manifest.json"
    with contextlib.suppress(Stopped):
        _job(options, PRECISIONS[0], root, until=last)
    for layer in solved:
        (file,) = (units / Capture(layer).unit).rglob(Capture.grams)
        grams = load_file(file)
        for site in sites(config, layer, ("ffn_channels",)):
            weight = reader.tensor(tensor_name(config, layer, site.output.role))
            rows.append(_site(site, grams[site.name], weight, tokens, options.sparsity))
    return {
        "sites": len(rows),
        "curves_in_float32": sum(row["curve"] == "torch.float32" for row in rows),
        "repairs_in_float32": sum(row["repair"] == "torch.float32" for row in rows),
        "same_channels_kept_least": min(row["same"] for row in rows),
        "same_channels_kept_mean": sum(row["same"] for row in rows) / len(rows),
        "damage_difference_most": max(row["damage"] for row in rows),
        "repair_difference_most": max(row["solution"] for row in rows),
        "seconds_in_float64": round(sum(row["seconds"][0] for row in rows), 1),
        "seconds_in_float32": round(sum(row["seconds"][1] for row in rows), 1),
    }


def _site(site: Site, gram: Tensor, weight: Tensor, tokens: int, sparsity: float) -> dict[str, Any]:
    wide, started = Room(CPU), time.perf_counter()
    exact = damage_curve(gram, weight, room=wide)
    between = time.perf_counter()
    found = damage_curve(gram, weight, room=replace(wide, dtype=torch.float32))
    ended = time.perf_counter()
    gone = int(sparsity * site.structures)
    kept = exact.order[gone:].sort().values
    solutions, dtypes = [], []
    for dtype in (torch.float64, torch.float32):
        solution = torch.empty(len(weight), len(kept), dtype=torch.float64)
        went = ridge_into(
            DeviceMatrix(gram),
            DeviceMatrix(weight),
            kept,
            default_damping(tokens),
            DeviceMatrix(solution),
            replace(wide, dtype=dtype),
        )
        solutions.append(solution)
        dtypes.append(went.dtype)
    return {
        "curve": str(found.dtype),
        "repair": str(dtypes[1]),
        "same": _same_share(exact, found, gone),
        "damage": _relative(exact.damage[:gone].sum(), found.damage[:gone].sum()),
        "solution": _relative(*solutions),
        "seconds": (between - started, ended - between),
    }


def _same_share(one: DamageCurve, other: DamageCurve, gone: int) -> float:
    """Share of the channels that stay in both, of those that stay."""
    kept: Sequence[set[int]] = [set(curve.order[gone:].tolist()) for curve in (one, other)]
    return len(kept[0] & kept[1]) / max(1, len(kept[0]))


def _relative(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).norm() / wanted.norm())


if __name__ == "__main__":
    main()
