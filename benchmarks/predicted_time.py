"""What jobs take beside what was predicted of them before they ran.

    make model
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.predicted_time --json FILE [CASE ...]

Each case is a job of SmolLM2-135M, or of a model with random weights. The rates of this machine are
measured, the time is predicted (`strucprune_core.plan.seconds`), and the job runs in this process.
With one thread, processor time is what the job would take on a machine that does nothing else, so
the ratio is of processor time; seconds are shown beside it. Start-up is left out of both: the
libraries are loaded here before the first case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_model import save_random_model
from strucprune_core import JobSpec
from strucprune_core.evaluation.device_rates import measured_rates
from strucprune_core.pipeline import run_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.seconds import START_SECONDS, estimated_seconds
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.storage.local import LocalStore

TASKS = Path(__file__).parents[1] / "embedded" / "tasks"
Job = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A case: what was predicted, and what it took.

    Attributes:
        kinds: Processor seconds by kind of unit.
    """

    case: str
    predicted_seconds: float
    least_seconds: float
    most_seconds: float
    cpu_seconds: float
    seconds: float
    kinds: dict[str, float]

    @property
    def ratio(self) -> float:
        """Taken over predicted."""
        return self.cpu_seconds / self.predicted_seconds


@dataclass(frozen=True)
class Inputs:
    """A real model and two texts."""

    model: Path
    calibration: Path
    evaluation: Path

    def job(self, samples: int, length: int, **pruning: Any) -> Job:
        """A job of the real model with so many sequences of so many tokens."""
        return {
            "model": {"uri": str(self.model)},
            "pruning": {"sparsity": 0.3, **pruning},
            "calibration": {
                "uri": str(self.calibration),
                "samples": samples,
                "sequence_length": length,
            },
            "evaluation": {"uri": str(self.evaluation), "sequences": 8, "sequence_length": 512},
        }


def _plain(inputs: Inputs, _: Path) -> Job:
    job = inputs.job(32, 512)
    del job["evaluation"]
    return job


def _of_the_demo(inputs: Inputs, _: Path) -> Job:
    sizes = {"sparsity": None, "sizes": [0.2, 0.4], "allocation": "threshold"}
    job = inputs.job(32, 512, **sizes, layout="per_layer")
    job["evaluation"] |= {
        **_everyday(),
        "samples": True,
        "sample_tokens": 16,
        "prompts": ["The most famous play by William Shakespeare is", "Water freezes when the"],
        "speed": True,
    }
    return job


def _with_tasks(inputs: Inputs, _: Path) -> Job:
    job = inputs.job(16, 256)
    job["evaluation"] |= _everyday()
    return job


def _everyday() -> Job:
    return {"tasks": ["everyday"], "limit": 40, "task_files": str(TASKS)}


def _wide(width: int, channels: int, vocabulary: int) -> Callable[[Inputs, Path], Job]:
    def make(inputs: Inputs, root: Path) -> Job:
        raw = {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": channels,
            "num_hidden_layers": 4,
            "num_attention_heads": width // 64,
            "num_key_value_heads": width // 64,
            "vocab_size": vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
        text = save_random_model(root / "model", raw)
        job = Inputs(root / "model", text, text).job(16, 256)
        # A model of random numbers predicts nothing, whatever is taken from it.
        job["evaluation"] |= {"sequence_length": 256, "max_perplexity_ratio": 1e9}
        return job

    return make


CASES: dict[str, Callable[[Inputs, Path], Job]] = {
    "32 x 512 tokens": _plain,
    "8 x 256 tokens, evaluated": lambda inputs, _: inputs.job(8, 256),
    "the demo's job": _of_the_demo,
    "distillation, 10 steps": lambda inputs, _: inputs.job(16, 256, distill={"steps": 10}),
    "recovery, 20 steps": lambda inputs, _: inputs.job(16, 256, recover={"steps": 20}),
    "a task": _with_tasks,
    "energies by gradient": lambda inputs, _: inputs.job(16, 256, energy="gradient"),
    "random, 512 wide, FFN 4,096": _wide(512, 4096, 1000),
    "random, 1,024 wide, FFN 2,816": _wide(1024, 2816, 8000),
}


def main() -> int:
    """Run the benchmark; 1 if a job took more or less than its range."""
    options = _parse(sys.argv[1:])
    inputs = Inputs(options.model, options.calibration, options.evaluation)
    results = []
    for case in options.cases or CASES:
        results.append(measured(case, inputs))
        print(table(results), flush=True)
        if options.json:
            text = json.dumps([asdict(each) for each in results], indent=2)
            options.json.write_text(text + "\n", encoding="utf-8")
    outside = [r for r in results if not r.least_seconds <= r.cpu_seconds <= r.most_seconds]
    return int(bool(outside))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--model", type=Path, default=Path(".cache/models/smollm2-135m"))
    parser.add_argument("--calibration", type=Path, default=Path(".cache/text/calibration.txt"))
    parser.add_argument("--evaluation", type=Path, default=Path(".cache/text/evaluation.txt"))
    parser.add_argument("--json", type=Path, help="where the results go")
    return parser.parse_args(arguments)


def measured(case: str, inputs: Inputs) -> Result:
    """Predict a case, and run it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        body = CASES[case](inputs, root)
        body |= {"output": {"uri_prefix": str(root / "out")}, "runtime": {"device": "cpu"}}
        spec = JobSpec.model_validate(body)
        rates = measured_rates(torch.device("cpu"), torch.get_num_threads())
        facts = inspect_model(LocalStore(Path(spec.model.uri)))
        predicted = estimated_seconds(spec, facts, rates)
        kinds: dict[str, float] = {}
        last, began = _cpu_seconds(), time.monotonic()

        def count(unit: FinishedUnit) -> None:
            nonlocal last
            now = _cpu_seconds()
            kinds[unit.kind] = kinds.get(unit.kind, 0.0) + now - last
            last = now

        workspace = LocalStore(root / "workspace")
        scratch = root / "scratch"
        run_job(spec, workspace=workspace, scratch=scratch, finished=count, rates=rates)
        return Result(
            case,
            predicted.seconds - START_SECONDS,
            predicted.least_seconds,
            predicted.most_seconds,
            sum(kinds.values()),
            time.monotonic() - began,
            {kind: round(each, 2) for kind, each in kinds.items()},
        )


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def table(results: list[Result]) -> str:
    """Everything as Markdown."""
    lines = [
        "| job | predicted | range | processor | taken / predicted | on the clock |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {each.case} | {each.predicted_seconds:.0f} s "
        f"| {each.least_seconds:.0f} to {each.most_seconds:.0f} s | {each.cpu_seconds:.0f} s "
        f"| {each.ratio:.2f} | {each.seconds:.0f} s |"
        for each in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
