"""Whole experts: StrucPrune's scores against others, on a small mixture that is trained here.

    .venv/bin/python -m benchmarks.experts --calibration CALIBRATION.txt --evaluation EVAL.txt \
        --json benchmarks/results/experts.json

Texts as in `benchmarks.quality`. A real mixture of experts fits neither this machine nor a
benchmark's time. So the first run trains one of some six million parameters on the calibration text
(`small_moe`; about ten minutes of one core) and keeps it in `--model`. Its figures say how the
scores compare on it, and nothing about how much a real model can lose.

Experts go by the scores that a job offers, by REAP written a second time from its paper, by how
many tokens reach them, and by chance. Each seed draws other calibration windows. Nothing is
repaired. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.baselines import experts as others
from benchmarks.output import write_result
from benchmarks.rival_runs import load_whole, perplexity
from benchmarks.small_moe import Recipe, ensure
from strucprune_core import JobSpec, Report, prune
from strucprune_core.calibration.text import Text, calibration_windows, digest, evaluation_windows
from strucprune_core.calibration.tokenizer import load_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER
from strucprune_core.plan.sites import holdout_sequences
from strucprune_core.storage.open import open_object, open_store

Windows = NDArray[np.int32]

METHODS = {
    "random": "random",
    "frequency": "fewest tokens",
    "reap-paper": "REAP, written from the paper",
    "reap": "StrucPrune (`reap`, the default)",
    "output_norm": "StrucPrune, `--expert-score output_norm`",
}
"""Rows of the table; the last two are jobs, by the name of their score."""
_JOBS = ("reap", "output_norm")


@dataclass(frozen=True)
class Setup:
    """What all rows of a run share.

    Attributes:
        model: Directory of the dense model.
        calibration: The text, its marks deleted.
        windows: Calibration windows, by seed.
        seen: What the dense model's experts do on those that jobs score experts by, by seed.
        evaluation: Evaluation windows.
        experts: Of a layer.
        work: For files.
    """

    model: Path
    calibration: Path
    windows: dict[int, Windows]
    seen: dict[int, list[others.Seen]]
    evaluation: Windows
    experts: int
    work: Path


@dataclass(frozen=True)
class Row:
    """One pruned model.

    Attributes:
        method: One of `METHODS`.
        sparsity: Share of each layer's experts that went.
        seed: Of the calibration windows.
        perplexity: On the evaluation windows.
        ratio: Of it to the dense model's.
        kept: Experts that stayed, by layer.
    """

    method: str
    sparsity: float
    seed: int
    perplexity: float
    ratio: float
    kept: list[list[int]]


def main() -> int:
    """Run the comparison; the exit status is 1 if the two REAPs keep different experts."""
    options = _parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="strucprune-experts-") as folder:
        setup = _prepare(options, Path(folder))
        dense = perplexity(load_whole(setup.model), setup.evaluation)
        rows = [
            _row(setup, method, sparsity, seed, dense)
            for sparsity in options.levels
            for method in METHODS
            for seed in options.seeds
        ]
        result = {
            "environment": _environment(options),
            "dense": {"perplexity": dense},
            "rows": [asdict(row) for row in rows],
        }
    print(table(rows, dense))
    write_result(options.json, result)
    return 0 if reaps_agree(rows) else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", required=True, type=Path)
    parser.add_argument("--model", type=Path, default=Path(".cache/models/small-moe"))
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="of training")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=128, help="evaluation windows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--delete-mark", default="<unk>", help="deleted from the calibration text")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser.parse_args(arguments)


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(steps=options.steps)


def _prepare(options: argparse.Namespace, work: Path) -> Setup:
    recipe = _recipe(options)
    text = options.calibration.read_text(encoding="utf-8").replace(options.delete_mark, "")
    calibration = work / "calibration.txt"
    calibration.write_text(text, encoding="utf-8")
    options.model.parent.mkdir(parents=True, exist_ok=True)
    model = ensure(options.model, text, recipe, seed=0)
    tokenizer = load_tokenizer((model / TOKENIZER).read_bytes(), recipe.vocabulary)
    windows = {
        seed: calibration_windows(
            _text(calibration), tokenizer, options.samples, recipe.length, seed
        )
        for seed in options.seeds
    }
    evaluation = evaluation_windows(
        _text(options.evaluation), tokenizer, options.sequences, recipe.length
    )
    dense = load_whole(model)
    return Setup(
        model=model.absolute(),
        calibration=calibration,
        windows=windows,
        seen={seed: others.seen_by(dense, scored(drawn)) for seed, drawn in windows.items()},
        evaluation=evaluation,
        experts=recipe.experts,
        work=work,
    )


def scored(windows: Windows) -> Windows:
    """The windows that a job scores experts by: it probes the result on the last ones."""
    return windows[: len(windows) - holdout_sequences(len(windows))]


def _text(path: Path) -> Text:
    return Text(*open_object(str(path.absolute())), "text")


def _row(setup: Setup, method: str, sparsity: float, seed: int, dense: float) -> Row:
    print(f"{method}, {sparsity:g}, seed {seed}", file=sys.stderr, flush=True)
    run = _by_job if method in _JOBS else _by_other
    model, kept = run(setup, method, sparsity, seed)
    found = perplexity(model, setup.evaluation)
    return Row(method, sparsity, seed, found, found / dense, kept)


def _by_other(setup: Setup, method: str, sparsity: float, seed: int) -> tuple[Any, list[list[int]]]:
    model = load_whole(setup.model)
    count = round((1.0 - sparsity) * setup.experts)
    if method == "random":
        kept = others.by_chance(len(others.blocks(model)), setup.experts, count, seed)
    else:
        choose = {"frequency": others.by_frequency, "reap-paper": others.by_reap}[method]
        kept = choose(setup.seen[seed], count)
    others.keep(model, kept)
    return model, kept


def _by_job(setup: Setup, score: str, sparsity: float, seed: int) -> tuple[Any, list[list[int]]]:
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        root = Path(folder)
        samples, length = setup.windows[seed].shape
        spec = JobSpec.model_validate(
            {
                "model": {"uri": str(setup.model)},
                "output": {"uri_prefix": str(root / "pruned")},
                "pruning": {
                    "structures": ["experts"],
                    "sparsity": sparsity,
                    "expert_score": score,
                },
                "calibration": {
                    "uri": str(setup.calibration),
                    "samples": samples,
                    "sequence_length": length,
                    "seed": seed,
                },
                "runtime": {"device": "cpu"},
            }
        )
        workspace = open_store(str(root / "workspace"))
        report = prune(spec, workspace=workspace, scratch=root / "scratch")
        model = AutoModelForCausalLM.from_pretrained(root / "pruned", dtype=torch.float32).eval()
        for parameter in model.parameters():  # The files go away with the folder.
            parameter.data = parameter.data.clone()
    return model, _kept(report)


def _kept(report: Report) -> list[list[int]]:
    return [
        [number for number in range(each.before) if number not in each.removed]
        for each in (layer.experts for layer in report.layers)
        if each is not None
    ]


def reaps_agree(rows: Sequence[Row]) -> bool:
    """Whether StrucPrune's REAP and the one from the paper keep the same experts everywhere."""
    kept = {(row.method, row.sparsity, row.seed): row.kept for row in rows}
    return all(
        row.kept == kept["reap", row.sparsity, row.seed]
        for row in rows
        if row.method == "reap-paper"
    )


def table(rows: Sequence[Row], dense: float) -> str:
    """All rows as Markdown; perplexities of the seeds, then their mean over the dense one."""
    levels = sorted({row.sparsity for row in rows})
    parts = [
        f"Dense perplexity {dense:.2f}.\n",
        f"| experts go by | {' | '.join(f'{level:.0%} of experts' for level in levels)} |",
        f"|---|{'---|' * len(levels)}",
    ]
    for method, title in METHODS.items():
        cells = [
            _cell([row for row in rows if (row.method, row.sparsity) == (method, level)])
            for level in levels
        ]
        parts.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(parts)


def _cell(rows: Sequence[Row]) -> str:
    each = ", ".join(f"{row.perplexity:.2f}" for row in rows)
    return f"{each} ({fmean(row.ratio for row in rows):.3f}x)"


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": asdict(_recipe(options)),
        "calibration_sha256": digest(_text(options.calibration)),
        "delete_mark": options.delete_mark,
        "samples": options.samples,
        "seeds": options.seeds,
        "evaluation_sha256": digest(_text(options.evaluation)),
        "sequences": options.sequences,
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
