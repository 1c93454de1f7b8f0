"""Time of a pruning by phase, compared with a forward pass and a lower bound; and how it grows.

    make model
    .venv/bin/python -m benchmarks.speed --calibration CALIBRATION.txt --json FILE

On SmolLM2-135M, each round runs transformers' plain forward pass (float32, with logits) over the
calibration tokens, prunes, and runs the pass again, all in this process. Figures are medians. The
target: statistics, curves, probes, allocation and solving together take at most three such passes.
Writing, the reload check and publishing are listed apart; nothing is evaluated.

Processor time is shown beside seconds, since it says more on a machine with other work. Ratios are
of processor time. The floor of a phase is the time of its planned operations
(`strucprune_core.plan.work`) at the rate of a large matrix product, measured here in the precision
that the phase computes in.

Growth is fitted on models with random weights: one of hidden size d, FFN channels f, layers L and
calibration tokens n changes, and the exponent is the slope of log(time) over its logarithm. It
is compared with the exponent of the planned operations.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.output import write_result
from benchmarks.random_model import save_random_model
from strucprune_core import JobSpec, prune
from strucprune_core.calibration.text import Text, calibration_windows
from strucprune_core.calibration.tokenizer import load_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER
from strucprune_core.models.devices import settle_vector_math
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.work import flops
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.storage.local import LocalStore

BAR = 3.0
PHASES: dict[str, tuple[str, ...]] = {
    "statistics": ("tokens", "weights", "embed", "capture"),
    "curves": ("curve",),
    "probes": ("probe",),
    "allocation": ("price", "allocate"),
    "solve": ("solve",),
    "writing": ("model_check", "assemble", "verify", "report", "publish"),
}
"""Kinds of units."""
WRITING = "writing"
PURPOSES: dict[str, tuple[str, ...]] = {
    "statistics": ("calibration", "grams"),
    "curves": ("curves",),
    "probes": ("probes",),
    "allocation": (),
    "solve": ("solves",),
    "writing": ("verification",),
}
"""Which planned operations are theirs."""
IN_FLOAT64 = ("curves", "solve")
PRODUCT_SIZE, PRODUCT_RUNS = 1536, 5
FORWARD_TOKENS = 2048  # Of a micro-batch: its logits take 400 MB.

BASE = {"d": 256, "f": 1024, "L": 2, "n": 4096}
GROWTH = {"d": (256, 512, 1024), "f": (512, 1024, 2048), "L": (2, 4, 8), "n": (2048, 4096, 8192)}
GROWTH_LENGTH = 256  # Tokens of a sequence.


@dataclass(frozen=True)
class Cost:
    """Seconds, and seconds of processor time."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


@dataclass(frozen=True)
class Row:
    """A phase: what it took, in forward passes (of processor time), and its floor."""

    phase: str
    cost: Cost
    passes: float
    flops: int
    floor_cpu_seconds: float


def main() -> int:
    """Run the benchmark; 1 if the bar is missed."""
    options = _parse(sys.argv[1:])
    settle_vector_math()
    result = _phases(options)
    if options.growth:
        result["growth"] = _growth()
    print(table(result))
    write_result(options.json, result)
    return int(result["passes"] > BAR)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=Path(".cache/models/smollm2-135m"))
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-growth", dest="growth", action="store_false")
    parser.add_argument("--json", type=Path, help="where the result goes")
    return parser.parse_args(arguments)


@contextmanager
def _measured(found: list[Cost]) -> Iterator[None]:
    began, began_cpu = time.perf_counter(), time.process_time()
    yield
    found.append(Cost(time.perf_counter() - began, time.process_time() - began_cpu))


def _phases(options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of forward pass and pruning on a real model."""
    rates = {str(dtype): _product_rate(dtype) for dtype in (torch.float32, torch.float64)}
    passes: list[Cost] = []
    rounds: list[dict[str, Cost]] = []
    with tempfile.TemporaryDirectory() as folder:
        spec = _job(options.model, options.calibration, options, Path(folder))
        tokens = calibration_tokens(spec)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        _forward(model, tokens[:4])  # Pages of the weights, and threads.
        for number in range(options.rounds):
            with _measured(passes):
                _forward(model, tokens)
            root = Path(folder) / str(number)
            rounds.append(_pruned(_job(options.model, options.calibration, options, root), root))
            with _measured(passes):
                _forward(model, tokens)
    forward = _median(passes)
    planned = _planned(spec)
    rows = []
    for phase in PHASES:
        cost = _median([costs[phase] for costs in rounds])
        rate = rates[str(torch.float64 if phase in IN_FLOAT64 else torch.float32)]
        share, work = cost.cpu_seconds / forward.cpu_seconds, planned[phase]
        rows.append(Row(phase, cost, share, work, work / rate))
    whole = sum((row.cost for row in rows if row.phase != WRITING), Cost())
    return {
        "tokens": int(tokens.size),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "flops_per_cpu_second": rates,
        "forward": asdict(forward),
        "phases": [asdict(row) for row in rows],
        "pruning": asdict(whole),
        "passes": whole.cpu_seconds / forward.cpu_seconds,
        "passes_of_seconds": whole.seconds / forward.seconds,
    }


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
    )


def _product_rate(dtype: torch.dtype) -> float:
    """Operations per second of processor time of a large matrix product, at its best."""
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype) for _ in range(2))
    out = torch.mm(left, right)
    found: list[Cost] = []
    for _ in range(PRODUCT_RUNS):
        with _measured(found):
            torch.mm(left, right, out=out)
    return 2.0 * PRODUCT_SIZE**3 / min(cost.cpu_seconds for cost in found)


@torch.inference_mode()
def _forward(model: Any, tokens: NDArray[np.int32]) -> None:
    """One plain pass, logits and all."""
    step = max(1, FORWARD_TOKENS // tokens.shape[1])
    for start in range(0, len(tokens), step):
        model(torch.from_numpy(tokens[start : start + step].astype(np.int64)), use_cache=False)


def _job(model: Path, text: Path, options: argparse.Namespace, root: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"uri": str(model)},
            "output": {"uri_prefix": str(root / "out")},
            "pruning": {"sparsity": options.sparsity},
            "calibration": {
                "uri": str(text),
                "samples": options.samples,
                "sequence_length": options.sequence_length,
            },
            "runtime": {"device": "cpu"},
        }
    )


def calibration_tokens(spec: JobSpec) -> NDArray[np.int32]:
    """The job's calibration windows."""
    text, model = Path(spec.calibration.uri or ""), Path(spec.model.uri)
    config = inspect_model(LocalStore(model)).config
    return calibration_windows(
        Text(LocalStore(text.parent), text.name, "calibration.uri"),
        load_tokenizer((model / TOKENIZER).read_bytes(), config.vocab_size),
        spec.calibration.samples,
        spec.calibration.sequence_length,
        spec.calibration.seed,
    )


def _pruned(spec: JobSpec, root: Path) -> dict[str, Cost]:
    """Prune: what each phase took."""
    kinds = {kind: phase for phase, kinds in PHASES.items() for kind in kinds}
    costs = dict.fromkeys(PHASES, Cost())
    last = time.process_time()

    def count(unit: FinishedUnit) -> None:
        nonlocal last
        now = time.process_time()
        costs[kinds[unit.kind]] += Cost(unit.seconds, now - last)
        last = now

    workspace = LocalStore(root / "workspace")
    prune(spec, workspace=workspace, scratch=root / "scratch", finished=count)
    return costs


def _planned(spec: JobSpec) -> dict[str, int]:
    """Planned operations of each phase."""
    config = inspect_model(LocalStore(Path(spec.model.uri))).config
    found = flops(spec, config, plan_job(spec, config).panels)
    return {
        phase: sum(found[purpose] for purpose in purposes) for phase, purposes in PURPOSES.items()
    }


def _growth() -> dict[str, dict[str, Any]]:
    """By phase and quantity: exponents, measured and planned, and the times they come from."""
    found: dict[str, dict[str, Any]] = {phase: {} for phase in PHASES}
    seen: dict[tuple[int, ...], tuple[dict[str, Cost], dict[str, int]]] = {}
    for name, values in GROWTH.items():
        sizes = [{**BASE, name: value} for value in values]
        for size in sizes:
            key = tuple(size.values())
            if key not in seen:
                seen[key] = _at(size)
        runs = [seen[tuple(size.values())] for size in sizes]
        for phase in PHASES:
            times = [costs[phase].cpu_seconds for costs, _ in runs]
            planned = [work[phase] for _, work in runs]
            found[phase][name] = {
                "measured": _exponent(values, times),
                "planned": _exponent(values, planned) if all(planned) else None,
                "cpu_seconds": dict(zip(map(str, values), times, strict=True)),
            }
    return found


def _exponent(sizes: tuple[int, ...], times: list[float] | list[int]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def _at(size: Mapping[str, int]) -> tuple[dict[str, Cost], dict[str, int]]:
    """Prune a model with random weights: what each phase took, and its planned operations."""
    raw = {
        "model_type": "llama",
        "hidden_size": size["d"],
        "intermediate_size": size["f"],
        "num_hidden_layers": size["L"],
        "num_attention_heads": size["d"] // 64,
        "num_key_value_heads": size["d"] // 64,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    options = argparse.Namespace(
        samples=size["n"] // GROWTH_LENGTH, sequence_length=GROWTH_LENGTH, sparsity=0.3
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = save_random_model(root / "model", raw)
        spec = _job(root / "model", text, options, root)
        return _pruned(spec, root), _planned(spec)


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    forward = result["forward"]
    lines = [
        f"One forward pass over {result['tokens']:,} tokens: {forward['seconds']:.1f} s, "
        f"{forward['cpu_seconds']:.1f} s of processor time.",
        "",
        phases_table(result),
    ]
    whole = result["pruning"]
    lines += [
        "",
        f"Pruning without writing: {whole['seconds']:.1f} s, {whole['cpu_seconds']:.1f} CPU "
        f"seconds: {result['passes']:.2f} forward passes (bar: {BAR:g}).",
    ]
    if "growth" in result:
        lines += ["", "Exponents of processor time, those of planned operations in brackets:", ""]
        lines += ["| phase | " + " | ".join(GROWTH) + " |", "|---" * (len(GROWTH) + 1) + "|"]
        for phase, by_name in result["growth"].items():
            cells = " | ".join(_cell(by_name[name]) for name in GROWTH)
            lines.append(f"| {phase} | {cells} |")
    return "\n".join(lines)


def phases_table(result: dict[str, Any]) -> str:
    """The phases of the real model as a Markdown table."""
    lines = [
        "| phase | seconds | CPU seconds | forward passes | GFLOP | floor, CPU seconds | of it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["phases"]:
        floor = row["floor_cpu_seconds"]
        times = f"{row['cost']['cpu_seconds'] / floor:.1f} x" if floor else ""
        lines.append(
            f"| {row['phase']} | {row['cost']['seconds']:.1f} | {row['cost']['cpu_seconds']:.1f} "
            f"| {row['passes']:.2f} | {row['flops'] / 1e9:,.0f} | {floor:.1f} | {times} |"
        )
    return "\n".join(lines)


def _cell(found: Mapping[str, Any]) -> str:
    planned = found["planned"]
    return f"{found['measured']:.2f}" + ("" if planned is None else f" ({planned:.2f})")


if __name__ == "__main__":
    sys.exit(main())
