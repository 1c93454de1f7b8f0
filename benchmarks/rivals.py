"""StrucPrune against other ways to prune: same model, calibration and evaluation windows.

    make model
    .venv/bin/python -m benchmarks.rivals --calibration CALIBRATION.txt --evaluation EVAL.txt \
        --json benchmarks/results/rivals.json --plot benchmarks/results/rivals.svg

Texts as in `benchmarks.quality`. The rows are in `rival_methods`, how they are measured in
`rival_runs`. Every row runs in a process of its own, as does every stage (statistics that several
rows share, gathered once); a row's time is its own and its stages' together, its memory the highest
of them. With `--work` an interrupted run continues where it stopped. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch

from benchmarks.baselines.sites import Scope
from benchmarks.line_plot import Axis, Line, Plot, sparsity_axis
from benchmarks.output import write_result
from benchmarks.rival_methods import METHODS, Baseline
from benchmarks.rival_runs import (
    Cost,
    Outcome,
    Setup,
    method_named,
    run_dense,
    run_row,
    run_stage,
)
from strucprune_core.calibration.text import (
    Text,
    calibration_windows,
    digest,
    evaluation_windows,
)
from strucprune_core.calibration.tokenizer import load_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER
from strucprune_core.evaluation.standalone import evaluate_model
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.report.numbers import tick
from strucprune_core.storage.open import open_object, open_store

DENSE_TOLERANCE = 1e-4  # Relative: the shared perplexity against StrucPrune's streamed one.
PLOTTED_RATIO = 10.0  # The plot ends at this multiple of the dense perplexity.
SCOPES = {"ffn": "FFN channels", "body": "FFN and attention, of body parameters"}
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    title: str
    scope: Scope
    sparsity: float
    reached: float
    perplexity: float
    ratio: float
    seconds: float
    cpu_seconds: float
    host_peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """One row to be made."""

    scope: Scope
    method: str
    sparsity: float


def main() -> int:
    """Run the comparison."""
    # Threads that wait for each other sleep: otherwise waiting would count as CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="strucprune-rivals-") as folder:
        work = options.work or Path(folder)
        setup = _prepare(options, work)
        dense = _dense(options, setup)
        rows = [_row(setup, plan, dense) for plan in _plans(options)]
        result = {"environment": _environment(options), "dense": dense, "rows": _dumped(rows)}
    print(table(rows, dense))
    write_result(options.json, result)
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot(rows, dense), encoding="utf-8")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=Path(".cache/models/smollm2-135m"))
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--evaluation", required=True, type=Path)
    parser.add_argument("--levels", type=float, nargs="*", default=[0.2, 0.3, 0.5])
    parser.add_argument("--joint", type=float, nargs="*", default=[], help="levels of FFN + KV")
    known = [method.key for method in METHODS]
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=24, help="evaluation windows")
    parser.add_argument("--evaluation-length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--delete-mark", default="<unk>", help="deleted from the calibration text")
    parser.add_argument("--work", type=Path, help="keeps finished rows; the same one resumes")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--plot", type=Path, help="where the SVG goes")
    return parser.parse_args(arguments)


def _prepare(options: argparse.Namespace, work: Path) -> Setup:
    """Write the texts' windows once for all rows."""
    work.mkdir(parents=True, exist_ok=True)
    text = options.calibration.read_text(encoding="utf-8").replace(options.delete_mark, "")
    calibration = work / "calibration.txt"
    calibration.write_text(text, encoding="utf-8")
    config = inspect_model(open_store(str(options.model))).config
    tokenizer = load_tokenizer((options.model / TOKENIZER).read_bytes(), config.vocab_size)
    drawn = calibration_windows(
        _text(calibration), tokenizer, options.samples, options.sequence_length, options.seed
    )
    np.save(work / "calibration.npy", drawn)
    read = evaluation_windows(
        _text(options.evaluation), tokenizer, options.sequences, options.evaluation_length
    )
    np.save(work / "evaluation.npy", read)
    return Setup(
        model=options.model.absolute(),
        calibration=calibration.absolute(),
        samples=options.samples,
        length=options.sequence_length,
        seed=options.seed,
        work=work.absolute(),
        threads=options.threads,
    )


def _text(path: Path) -> Text:
    return Text(*open_object(str(path.absolute())), "text")


def _dense(options: argparse.Namespace, setup: Setup) -> dict[str, float]:
    """The dense model's perplexity both ways, which must agree."""

    def streamed() -> float:
        print("dense, streamed", file=sys.stderr, flush=True)
        found = evaluate_model(
            str(setup.model),
            str(options.evaluation.absolute()),
            sequences=options.sequences,
            sequence_length=options.evaluation_length,
            device="cpu",
            micro_batch_tokens=4096,
            tick=lambda share: None,
        )
        return float(found["perplexity"])

    ours = float(_once(setup, "dense-streamed", streamed))
    whole = float(_once(setup, "dense", lambda: _alone(run_dense, setup)))
    difference = abs(whole / ours - 1)
    if difference > DENSE_TOLERANCE:
        raise SystemExit(f"the dense model's perplexity is {ours} streamed, but {whole} whole")
    return {"perplexity": whole, "streamed_perplexity": ours, "relative_difference": difference}


def _plans(options: argparse.Namespace) -> list[Plan]:
    wanted = [method_named(key) for key in options.methods]
    return [
        Plan(scope, method.key, level)
        for scope, levels in zip(get_args(Scope), (options.levels, options.joint), strict=True)
        for level in levels
        for method in wanted
        if scope == "ffn" or method.attention
    ]


def _row(setup: Setup, plan: Plan, dense: dict[str, float]) -> Row:
    """Run what the row needs and is not there yet."""
    method = method_named(plan.method)
    cost = Cost()
    for stage in method.stages if isinstance(method, Baseline) else ():
        cost = cost.then(_stage(setup, plan.scope, stage))
    outcome = _outcome(setup, plan)
    cost = cost.then(outcome.cost)
    return Row(
        method=method.key,
        title=method.title,
        scope=plan.scope,
        sparsity=plan.sparsity,
        reached=outcome.reached,
        perplexity=outcome.perplexity,
        ratio=outcome.perplexity / dense["perplexity"],
        seconds=round(cost.seconds, 1),
        cpu_seconds=round(cost.cpu_seconds, 2),
        host_peak_bytes=cost.host_peak_bytes,
    )


def _stage(setup: Setup, scope: Scope, name: str) -> Cost:
    found = _once(
        setup, f"stage-{scope}-{name}", lambda: asdict(_alone(run_stage, setup, scope, name))
    )
    return Cost(**found)


def _outcome(setup: Setup, plan: Plan) -> Outcome:
    def run() -> dict[str, Any]:
        return asdict(_alone(run_row, setup, plan.scope, plan.method, plan.sparsity))

    found = _once(setup, f"{plan.scope}-{plan.method}-{plan.sparsity:g}", run)
    return Outcome(found["perplexity"], found["reached"], Cost(**found["cost"]))


def _once(setup: Setup, name: str, run: Callable[[], Any]) -> Any:
    """What `run` gives, kept in the work folder: a finished one is not run again."""
    path = setup.work / "finished" / f"{name}.json"
    if not path.exists():
        print(name, file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run())
        path.write_text(text, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def _alone(function: Callable[..., T], setup: Setup, *arguments: Any) -> T:
    """Call in a fresh process, whose peak memory is its own."""
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(setup.threads,),
    ) as pool:
        return pool.submit(function, setup, *arguments).result()


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": options.model.name,
        "calibration_sha256": digest(_text(options.calibration)),
        "delete_mark": options.delete_mark,
        "calibration": [options.samples, options.sequence_length],
        "seed": options.seed,
        "evaluation_sha256": digest(_text(options.evaluation)),
        "evaluation": [options.sequences, options.evaluation_length],
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _dumped(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def table(rows: list[Row], dense: dict[str, float]) -> str:
    """All rows as Markdown, a heading for each scope and sparsity."""
    parts = [f"Dense perplexity {dense['perplexity']:.3f}."]
    for scope, sparsity in dict.fromkeys((row.scope, row.sparsity) for row in rows):
        parts.append(f"\n{sparsity:.0%} of {SCOPES[scope]}:\n")
        parts.append("| method | perplexity | ratio | time | CPU time | peak memory |")
        parts.append("|---|---|---|---|---|---|")
        parts += [_line(row) for row in rows if (row.scope, row.sparsity) == (scope, sparsity)]
    return "\n".join(parts)


def _line(row: Row) -> str:
    shown = f"{row.perplexity:.2f}" if row.perplexity < 1000 else f"{row.perplexity:,.0f}"
    ratio = f"{row.ratio:.3f}" if row.ratio < 100 else f"{row.ratio:,.0f}"
    return (
        f"| {row.title} | {shown} | {ratio} | {row.seconds:.0f} s | {row.cpu_seconds:.0f} s "
        f"| {row.host_peak_bytes / 1e6:.0f} MB |"
    )


def plot(rows: list[Row], dense: dict[str, float]) -> str:
    """Perplexity over the sparsity of FFN channels, as an SVG document."""
    before = dense["perplexity"]
    lines = []
    for title in dict.fromkeys(row.title for row in rows if row.scope == "ffn"):
        own = [row for row in rows if row.title == title and row.scope == "ffn"]
        points = sorted((row.sparsity, row.perplexity) for row in own)
        ours = not isinstance(method_named(own[0].method), Baseline)
        last = points[-1][1]
        value = f"{last:.1f}" if last < 1000 else f"{last:,.0f}"
        lines.append(Line(title, ((0.0, before), *points), ours, value))
    title = "Perplexity over the share of FFN channels removed"
    return Plot(title, sparsity_axis(lines), _perplexity_axis(before)).svg(lines) if lines else ""


def _perplexity_axis(dense: float) -> Axis:
    low, high = dense / 1.1, dense * PLOTTED_RATIO
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (lead * 10.0**power for power in powers for lead in (1, 1.5, 2, 3, 5, 7))
    shown = tuple((at, tick(at)) for at in ticks if low <= at <= high)
    return Axis(low, high, shown, log=True)


if __name__ == "__main__":
    sys.exit(main())
