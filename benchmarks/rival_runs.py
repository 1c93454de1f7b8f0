"""One row or one stage of `benchmarks.rivals`, to be run in a process of its own.

Time and memory of a row cover loading, calibration and pruning, without the evaluation that
follows. For StrucPrune they cover the whole job, with writing, reload check and report. Weights of
a baseline are copied to anonymous memory first, since mapped from the file they would not count,
though the method needs them all at once.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.baselines.sites import Scope, model_sites, site_parameters
from benchmarks.rival_methods import METHODS, STAGES, Baseline, Case, Job, Method, Windows
from strucprune_core import JobSpec, prune
from strucprune_core.export.loading import load_pretrained
from strucprune_core.models.devices import settle_vector_math
from strucprune_core.run.memory_meter import MemoryMeter, return_free_memory
from strucprune_core.storage.open import open_store


@dataclass(frozen=True)
class Setup:
    """What all rows of a run share.

    Attributes:
        model: Directory of the dense checkpoint.
        calibration: Calibration text, marks deleted.
        samples: Calibration windows.
        length: Tokens per calibration window.
        seed: Of the windows, and of methods that draw.
        work: Folder with calibration.npy and evaluation.npy; stages are kept there.
        threads: Threads that torch may use in each process.
    """

    model: Path
    calibration: Path
    samples: int
    length: int
    seed: int
    work: Path
    threads: int

    def windows(self, name: str) -> Windows:
        """Token windows: "calibration" or "evaluation"."""
        windows: Windows = np.load(self.work / f"{name}.npy")
        return windows

    def stage(self, scope: Scope, name: str) -> Path:
        """Where a stage keeps what it found."""
        return self.work / "stages" / f"{scope}-{name}"


@dataclass(frozen=True)
class Cost:
    """What a process needed; CPU seconds say more than seconds on a machine with other work."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    host_peak_bytes: int = 0

    def then(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.host_peak_bytes, other.host_peak_bytes),
        )


@dataclass(frozen=True)
class Outcome:
    """A pruned model's figures; `reached` is the share of the scope's weights that went."""

    perplexity: float
    reached: float
    cost: Cost


def run_stage(setup: Setup, scope: Scope, name: str) -> Cost:
    """Run a stage over the dense model and keep what it finds at each site."""
    folder = setup.stage(scope, name)
    folder.mkdir(parents=True, exist_ok=True)
    with _measured() as costs:
        model = load_whole(setup.model)
        found = STAGES[name](model, scope, setup.windows("calibration"))
        for site, tensors in enumerate(found):
            torch.save(tensors, folder / f"{site}.pt")
    return costs[0]


def run_row(setup: Setup, scope: Scope, key: str, sparsity: float) -> Outcome:
    """Prune by one method and evaluate; stages' costs are not in the outcome."""
    method = method_named(key)
    if isinstance(method, Job):
        model, outcome = _run_job(setup, scope, method, sparsity)
    else:
        model, outcome = _run_baseline(setup, scope, method, sparsity)
    return replace(outcome, perplexity=perplexity(model, setup.windows("evaluation")))


def run_dense(setup: Setup) -> float:
    """Perplexity of the dense model as every row's is computed."""
    return perplexity(load_whole(setup.model), setup.windows("evaluation"))


def method_named(key: str) -> Method:
    """The row of that name.

    Raises:
        KeyError: there is none.
    """
    return {method.key: method for method in METHODS}[key]


def load_whole(directory: Path) -> Any:
    """The model in float32, its weights in memory of this process."""
    settle_vector_math()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.inference_mode()
def perplexity(model: Any, windows: NDArray[np.int32]) -> float:
    """Perplexity; each window is scored on its own, and its first token is not predicted."""
    losses = []
    for window in windows:
        tokens = torch.from_numpy(window).long()
        logits = model(tokens[None], use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), tokens[1:]).item())
    mean = sum(losses) / len(losses)
    return math.exp(mean) if mean < 700.0 else math.inf


def _run_baseline(
    setup: Setup, scope: Scope, method: Baseline, sparsity: float
) -> tuple[Any, Outcome]:
    with _measured() as costs:
        model = load_whole(setup.model)
        dense = site_parameters(model, scope)
        case = Case(
            model=model,
            sites=model_sites(model, scope),
            scope=scope,
            sparsity=sparsity,
            windows=setup.windows("calibration"),
            seed=setup.seed,
            stages={name: setup.stage(scope, name) for name in method.stages},
        )
        method.prune(case)
    return model, Outcome(math.nan, 1 - site_parameters(model, scope) / dense, costs[0])


def _run_job(setup: Setup, scope: Scope, method: Job, sparsity: float) -> tuple[Any, Outcome]:
    with tempfile.TemporaryDirectory(prefix="strucprune-rivals-", dir=setup.work) as folder:
        root = Path(folder)
        spec = _job_spec(setup, scope, method, sparsity, root / "pruned")
        with _measured() as costs:
            workspace = open_store(str(root / "workspace"))
            report = prune(spec, workspace=workspace, scratch=root / "scratch")
        model = load_pretrained(
            str(root / "pruned"), dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        for parameter in model.parameters():  # The files go away with the folder.
            parameter.data = parameter.data.clone()
    return model, Outcome(math.nan, report.sparsity.reached, costs[0])


def _job_spec(setup: Setup, scope: Scope, method: Job, sparsity: float, output: Path) -> JobSpec:
    structures = ["ffn_channels"] if scope == "ffn" else ["ffn_channels", "kv_groups"]
    return JobSpec.model_validate(
        {
            "model": {"uri": str(setup.model)},
            "output": {"uri_prefix": str(output)},
            "pruning": {"structures": structures, "sparsity": sparsity, **method.pruning},
            "calibration": {
                "uri": str(setup.calibration),
                "samples": setup.samples,
                "sequence_length": setup.length,
                "seed": setup.seed,
            },
            "runtime": {"device": "cpu"},
        }
    )


@contextmanager
def _measured() -> Iterator[list[Cost]]:
    """Measure what happens inside; the list holds the cost once it has ended."""
    costs: list[Cost] = []
    return_free_memory()
    began, cpu_began = time.monotonic(), time.process_time()
    with MemoryMeter(torch.device("cpu")).running() as meter:
        yield costs
        costs.append(
            Cost(
                seconds=round(time.monotonic() - began, 2),
                cpu_seconds=round(time.process_time() - cpu_began, 2),
                host_peak_bytes=meter.take_host_peak(),
            )
        )
