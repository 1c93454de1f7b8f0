"""What jobs read and copy, planned and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strucprune_core.method.linalg.transfers import NOTHING, Transferred, Transfers
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.memory.forward import layer_bytes
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.traffic import StoredWeights, phase_traffic
from strucprune_core.report.document import PhaseTraffic, Report
from tests.core.jobs.tiny_job import run
from tests.core.models.families import random_model
from tests.core.models.generic.tiny import save_tiny
from tests.core.plan.limited_jobs import (
    GIB,
    SEVEN_BILLION,
    SHAPES,
    in_half_precision,
    large_job,
    limited,
)
from tests.core.plan.shapes import shape
from tests.support.text import make_text
from tests.support.tiny_experts import save_tiny_experts
from tests.support.tiny_llama import make_tiny_llama, save_tokenizer

AMPLE = 10**9
WAYS = ("read_bytes", "to_device_bytes", "to_host_bytes")
JOBS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "small pieces": ("wide_ffn", None, {}),
    "ample": ("wide_ffn", AMPLE, {}),
    "panels": ("wide_ffn", 1_500_000, {}),
    "tied and projected": ("opt-350m", AMPLE, {}),
    "heads, soft caps": ("gemma2", None, {"structures": ["ffn_channels", "query_heads"]}),
    "experts' channels": ("mixtral", None, {}),
    "gradients and ADMM": ("wide_ffn", None, {"energy": "gradient", "solver": "admm"}),
    "rounds": ("opt", None, {"rounds": 2}),
    "layers": ("wide_ffn", None, {"structures": ["layers"], "sparsity": 0.4}),
    "recovery": ("wide_ffn", None, {"recover": {"steps": 5}}),
    "recovery alone": ("gpt2", None, {"recover": {"mode": "parallel", "steps": 5}}),
    "distillation": ("wide_ffn", None, {"distill": {"steps": 10, "learning_rate": 3e-4}}),
}


def model_of(name: str, directory: Path) -> Path:
    """A model of a shape of `test_pieces`, or of a family; in 16 bits."""
    if name in SHAPES:
        return _halved(make_tiny_llama(directory, layers=3, **SHAPES[name]))
    model = random_model(name)
    model.save_pretrained(directory)
    save_tokenizer(directory, text=make_text(), vocab=model.config.vocab_size)
    return _halved(directory)


def _halved(directory: Path) -> Path:
    in_half_precision(directory)
    return directory


GENERIC: dict[str, tuple[int | None, dict[str, Any]]] = {
    "olmo2": (None, {}),
    "bloom": (AMPLE, {}),
    "gemma3n_text": (None, {}),
    "qwen3_moe": (None, {"structures": ["experts"], "sparsity": 0.25}),
}


def summed(traffic: list[PhaseTraffic], way: str) -> tuple[int, int]:
    """Planned and counted bytes of all phases."""
    planned = sum(getattr(phase.planned, way) for phase in traffic)
    return planned, sum(getattr(phase.counted, way) for phase in traffic)


@pytest.mark.parametrize("name", JOBS)
def test_plan_and_count_agree(tmp_path: Path, text_file: Path, name: str) -> None:
    model, limit, pruning = JOBS[name]
    spec = limited(
        model_of(model, tmp_path / "model"), text_file, tmp_path / "out", limit, **pruning
    )
    report = run(spec, tmp_path)
    assert isinstance(report, Report)
    for way in WAYS:
        planned, counted = summed(report.traffic, way)
        assert planned == pytest.approx(counted, rel=0.05), way
    if name == "layers":
        return  # Which of them go, and what is solved behind them, is not known before.
    for phase in report.traffic:
        if phase.name in ("calibrating", "allocating", "solving", "evaluating"):
            to_device = phase.counted.to_device_bytes
            assert phase.planned.to_device_bytes == pytest.approx(to_device, rel=0.05), phase.name


@pytest.mark.parametrize("name", GENERIC)
def test_so_do_they_in_the_modules_of_transformers(
    tmp_path: Path, text_file: Path, name: str
) -> None:
    limit, pruning = GENERIC[name]
    experts = "structures" in pruning
    model = (save_tiny_experts if experts else save_tiny)(name, tmp_path / "model")
    report = run(limited(model, text_file, tmp_path / "out", limit, **pruning), tmp_path)
    for way in WAYS:
        planned, counted = summed(report.traffic, way)
        assert planned == pytest.approx(counted, rel=0.05), way


def large(limit: int, **changes: Any) -> dict[str, Transferred]:
    """Phases of a job on a shape of 7 billion parameters, stored in 16 bits."""
    config = shape("llama", **SEVEN_BILLION)
    spec = large_job(limit, **changes)
    plan = plan_job(spec, config)
    return phase_traffic(spec, config, plan.tiles, plan.panels, StoredWeights(2.0, 2))


def test_a_large_device_is_sent_each_weight_once_in_a_pass() -> None:
    """A 7B shape on 24 GiB: weights of each pass, hidden states and results, and little else."""
    config = shape("llama", **SEVEN_BILLION)
    d, f, layers, tokens = 4096, 11008, 32, 128 * 2048
    body = layers * layer_bytes(config, 0) // 2  # In 16 bits.
    head = 2 * config.vocab_size * d
    states, gram, matrix = 4 * tokens * d, 4 * f * f, 2 * d * f
    windows = 2 * 256 * 4 * d  # The hidden states that energies are probed on.
    found = large(20 * GIB)
    # Each layer's statistics: the layer, the text's hidden states there and back, half of a Gram
    # matrix that is symmetric, and inputs for its held-out error.
    calibrating = found["calibrating"]
    assert calibrating.to_device <= 1.1 * (
        body + layers * states + head + curves(layers, gram, matrix)
    )
    results = layers * (gram / 2 + 4 * 4096 * f)
    assert calibrating.to_host <= 1.1 * ((layers + 1) * states + results)
    # Four groups of eight layers, each through the rest of the model, with a solve for each layer.
    groups = body * (32 + 24 + 16 + 8) / 32
    solves = layers * (gram + matrix)
    allocating = groups + solves + 4 * head + (layers + 4) * windows
    assert found["allocating"].to_device <= 1.1 * (allocating + curves(layers, gram, matrix))
    # Both models are evaluated, and hidden states never leave the device; then the reload check.
    assert found["evaluating"].to_device <= 1.1 * (2 * body + 4 * head + 2 * (body + 2 * head))
    small = 2**20 * layers
    assert found["evaluating"].to_host <= 3 * small


def curves(layers: int, gram: int, matrix: int) -> int:
    """What all damage curves are sent; of whichever phase they are."""
    return layers * (gram + matrix)


def test_small_pieces_cost_copies() -> None:
    """Without a limit the same job sends many times as much."""
    whole = Transferred.total(large(20 * GIB).values())
    config = shape("llama", **SEVEN_BILLION)
    spec = large_job(None)
    plan = plan_job(spec, config)
    pieces = phase_traffic(spec, config, plan.tiles, plan.panels, StoredWeights(2.0, 2))
    assert Transferred.total(pieces.values()).to_device > 10 * whole.to_device


def test_a_phase_without_traffic_is_not_listed() -> None:
    assert all(any(moved) for moved in large(20 * GIB).values())


def test_counts_begin_again() -> None:
    transfers = Transfers()
    transfers.count(read=3, to_device=2)
    transfers.count(to_host=1, read=1)
    assert transfers.take() == Transferred(read=4, to_device=2, to_host=1)
    assert transfers.take() == NOTHING


def test_stored_weights_are_those_of_the_files(tmp_path: Path) -> None:
    from strucprune_core.plan.inspection import inspect_model
    from strucprune_core.storage.local import LocalStore

    model = model_of("wide_ffn", tmp_path / "model")
    facts: ModelFacts = inspect_model(LocalStore(model))
    assert StoredWeights.of(facts) == StoredWeights(2.0, 2)
