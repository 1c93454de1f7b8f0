"""Perplexity of SmolLM2-135M after pruning, compared with the limits that this project sets itself.

    make model
    .venv/bin/python benchmarks/quality.py --calibration CALIBRATION.txt --evaluation EVAL.txt

The texts of the README's figures are WikiText-2. Calibration uses the validation split in its
tokenised form with the `<unk>` marks deleted (`--delete-mark` does that on a copy). Evaluation uses
the beginning of the raw test split. Everything runs on the CPU. The result is printed as a table,
and as JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from strucprune_core import JobSpec, Report, prune
from strucprune_core.storage.open import open_store

# Highest pruned / dense perplexity accepted, by sparsity (FFN channels, layout per_layer).
BARS = {0.2: 1.27, 0.3: 1.48, 0.5: 2.20}
RECOVERED_BARS = {0.2: 1.24, 0.3: 1.40, 0.5: 2.05}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    sparsity: float
    dense: float
    pruned: float
    ratio: float
    bar: float | None
    prune_seconds: float
    evaluate_seconds: float
    host_peak_bytes: int | None


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    options = options_parser().parse_args()
    bars = RECOVERED_BARS if options.recover_steps or options.distill_steps else BARS
    rows = [_row(run(options, each), each, bars.get(each)) for each in options.sparsity]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_table(rows)
    return int(any(row.bar is not None and row.ratio > row.bar for row in rows))


def options_parser() -> argparse.ArgumentParser:
    """The options of `run`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=".cache/models/smollm2-135m")
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", required=True, type=Path)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delete-mark", default="<unk>", help="deleted from the calibration text")
    parser.add_argument("--solver", default="obs", choices=["obs", "admm"])
    parser.add_argument("--allocation", default="threshold", choices=["threshold", "softmax"])
    parser.add_argument("--energy", default="kl_probe")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--structures", nargs="+", default=["ffn_channels"])
    parser.add_argument("--recover-steps", type=int, default=0)
    parser.add_argument("--recover-mode", default="sequential")
    parser.add_argument("--distill-steps", type=int, default=0)
    parser.add_argument("--evaluation-sequences", type=int, default=24, help="of 1024 tokens")
    parser.add_argument("--json", action="store_true")
    return parser


def run(options: argparse.Namespace, sparsity: float) -> Report:
    """Prune in a temporary directory, of which nothing stays but the report."""
    with tempfile.TemporaryDirectory(prefix="strucprune-quality-") as folder:
        root = Path(folder)
        calibration = root / "calibration.txt"
        text = options.calibration.read_text(encoding="utf-8").replace(options.delete_mark, "")
        calibration.write_text(text, encoding="utf-8")
        spec = JobSpec.model_validate(
            {
                "model": {"uri": options.model},
                "output": {"uri_prefix": str(root / "pruned")},
                "pruning": _pruning(options, sparsity),
                "calibration": {
                    "uri": str(calibration),
                    "samples": options.samples,
                    "sequence_length": options.sequence_length,
                    "seed": options.seed,
                },
                "evaluation": {
                    "uri": str(options.evaluation),
                    "sequences": options.evaluation_sequences,
                    "sequence_length": 1024,
                },
                "runtime": {"device": "cpu"},
            }
        )
        report: Report = prune(
            spec, workspace=open_store(str(root / "workspace")), scratch=root / "scratch"
        )
        return report


def _pruning(options: argparse.Namespace, sparsity: float) -> dict[str, object]:
    pruning: dict[str, object] = {
        "sparsity": sparsity,
        "solver": options.solver,
        "allocation": options.allocation,
        "energy": options.energy,
        "rounds": options.rounds,
        "structures": options.structures,
    }
    if options.recover_steps:
        pruning["recover"] = {"steps": options.recover_steps, "mode": options.recover_mode}
    if options.distill_steps:
        pruning["distill"] = {"steps": options.distill_steps}
    return pruning


def _row(report: Report, sparsity: float, bar: float | None) -> Row:
    assert report.perplexity is not None
    seconds = {phase.name: phase.seconds for phase in report.phases}
    evaluating = seconds.pop("evaluating", 0.0)
    return Row(
        sparsity=sparsity,
        dense=report.perplexity.before,
        pruned=report.perplexity.after,
        ratio=report.perplexity.ratio,
        bar=bar,
        prune_seconds=sum(seconds.values()),
        evaluate_seconds=evaluating,
        host_peak_bytes=report.memory.host_peak_bytes.measured,
    )


def _print_table(rows: list[Row]) -> None:
    print("| FFN channels removed | dense | pruned | ratio | bar | pruning | evaluation | peak |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        bar = "-" if row.bar is None else f"{row.bar:.2f}"
        peak = "-" if row.host_peak_bytes is None else f"{row.host_peak_bytes / 1e6:.0f} MB"
        print(
            f"| {row.sparsity:.0%} | {row.dense:.3f} | {row.pruned:.3f} | {row.ratio:.3f} | {bar} "
            f"| {row.prune_seconds:.0f} s | {row.evaluate_seconds:.0f} s | {peak} |"
        )


if __name__ == "__main__":
    sys.exit(main())
