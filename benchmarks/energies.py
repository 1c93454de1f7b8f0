"""How much energies and price rounds improve SmolLM2-135M: perplexity and time by variant.

An energy says how much loss a unit of a layer's damage causes. A round sets the price per parameter
again, on the model pruned so far.

    make model
    .venv/bin/python -m benchmarks.energies --calibration CALIBRATION.txt --evaluation REST.txt
        --evaluation-sequences 12 --sparsity 0.3 0.5

Settings are chosen on calibration text alone, so cut one in two and give the parts. We took
WikiText-2's validation split with the `<unk>` marks deleted: all but the last 60,000 characters,
and the rest. The options are those of `benchmarks/quality.py`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.quality import options_parser, run
from strucprune_core import Report

VARIANTS = (
    ("kl_probe", 1),
    ("gradient", 1),
    ("forward", 1),
    ("kl_probe", 2),
    ("gradient", 2),
)
COLUMNS = ("removed", "energy", "rounds", "used", "dense", "pruned", "ratio", "allocating", "KL")


def main() -> int:
    """Print a row as soon as it is there."""
    options = options_parser().parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for sparsity in options.sparsity:
        for energy, rounds in VARIANTS:
            changes = {"energy": energy, "rounds": rounds}
            report = run(argparse.Namespace(**{**vars(options), **changes}), sparsity)
            cells = [f"{sparsity:.0%}", energy, str(rounds), *_cells(report)]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def _cells(report: Report) -> list[str]:
    assert report.perplexity is not None
    found = report.perplexity
    seconds = {phase.name: phase.seconds for phase in report.phases}
    used = next(number for number, each in enumerate(report.rounds, 1) if each.used)
    kls = [f"{each.kl:.4f}" for each in report.rounds if each.kl is not None]
    return [
        str(used),
        f"{found.before:.3f}",
        f"{found.after:.3f}",
        f"{found.ratio:.4f}",
        f"{seconds['allocating']:.0f} s",
        ", ".join(kls) or "-",
    ]


if __name__ == "__main__":
    sys.exit(main())
