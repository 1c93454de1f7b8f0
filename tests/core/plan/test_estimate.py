from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.linalg.panels import ALL_RESIDENT
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.estimate import estimate_job, size_of
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import build_graph
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.memory.host import PROCESS_BYTES, READING_BYTES, STORING_BYTES
from strucprune_core.plan.memory.solver import error_flops, gram_flops, ridge_flops
from strucprune_core.plan.work import flops, unit_flops
from strucprune_core.spec import CalibrationSpec, JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.plan.shapes import shape


@pytest.fixture
def facts(tiny_model: Path) -> ModelFacts:
    return inspect_model(LocalStore(tiny_model))


def job(**pruning: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"uri": "/model"},
            "output": {"uri_prefix": "/out"},
            "pruning": {"sparsity": 0.25, **pruning},
            "calibration": {"uri": "/text.txt", "samples": 4, "sequence_length": 64},
        }
    )


def narrowed(config: ModelConfig, widths: list[int]) -> ModelConfig:
    blocks = zip(config.blocks, widths, strict=True)
    return config.with_blocks([replace(block, ffn_widths=(width,)) for block, width in blocks])


def test_size_is_that_of_the_loaded_model(facts: ModelFacts, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    size = size_of(facts.config, dtype_bytes=4)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.bytes == 4 * size.parameters
    assert size.ffn_channels == 4 * 192
    # Tied embedding: counted once, as the LM head it multiplies with.
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert size.flops_per_token == 2 * sum(m.weight.numel() for m in linear)


def test_size_at_other_widths(facts: ModelFacts) -> None:
    dense = size_of(facts.config, dtype_bytes=2)
    pruned = size_of(narrowed(facts.config, [192, 100, 50, 1]), dtype_bytes=2)
    gone = 4 * 192 - 343
    assert dense.parameters - pruned.parameters == gone * 3 * 64
    assert dense.ffn_channels - pruned.ffn_channels == gone
    assert dense.flops_per_token - pruned.flops_per_token == 2 * 3 * 64 * gone


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_estimated_sizes_agree_with_the_widths(facts: ModelFacts, layout: str) -> None:
    estimate = estimate_job(job(layout=layout), facts)
    before = size_of(facts.config, dtype_bytes=4)
    after = size_of(narrowed(facts.config, [144] * 4), dtype_bytes=4)
    assert estimate.parameters_before == before.parameters
    assert estimate.parameters_after == after.parameters
    assert estimate.bytes_before == facts.index.total_bytes
    assert estimate.bytes_before - estimate.bytes_after == before.bytes - after.bytes


def test_uniform_rounding_is_in_the_estimate(facts: ModelFacts) -> None:
    estimate = estimate_job(job(layout="uniform", multiple_of=128), facts)
    after = size_of(narrowed(facts.config, [128] * 4), dtype_bytes=4)
    assert estimate.parameters_after == after.parameters


def test_out_of_reach(facts: ModelFacts) -> None:
    with pytest.raises(InvalidSpec):
        estimate_job(job(layout="uniform", sparsity=0.99), facts)


def test_memory_is_that_of_the_largest_step(facts: ModelFacts) -> None:
    estimate = estimate_job(job(), facts)
    peak = max(estimate.step_bytes.values())
    beside = PROCESS_BYTES + READING_BYTES + STORING_BYTES
    assert estimate.host_peak_bytes == beside + peak
    assert estimate.device_peak_bytes == 0
    on_device = job().model_copy(
        update={"runtime": job().runtime.model_copy(update={"device": "cuda"})}
    )
    assert estimate_job(on_device, facts).device_peak_bytes == peak
    assert estimate_job(on_device, facts).host_peak_bytes == beside


def test_weights_are_read_once_in_each_pass(facts: ModelFacts) -> None:
    uniform, probed = (estimate_job(job(**each), facts) for each in ({"allocation": "uniform"}, {}))
    head, matrices = 512 * 64, 4 * 64 * 192
    body = facts.parameters - 64 - head  # Without the final norm; the head is the embedding.
    # A look at all values, statistics and assembly, which does not read what is solved; the check
    # of the dense model (the first layer and the last, twice) and of the result.
    passes = (facts.parameters, body, facts.parameters - matrices, body + 2 * head)
    check = 4 * body // 4 + 5 * head + 64
    assert uniform.bytes_read == 4 * (sum(passes) + check + head + 3 * matrices)
    # Probes send one group through all layers, and solve each matrix.
    assert probed.bytes_read - uniform.bytes_read == 4 * (body + head + matrices)


def test_operations(facts: ModelFacts) -> None:
    tokens = 4 * 64
    head = 2 * 512 * 64
    body = size_of(facts.config, dtype_bytes=4).flops_per_token - head
    found = estimate_job(job(), facts).flops
    assert found["calibration"] == tokens * body
    assert found["grams"] == (tokens - 64) * 4 * 192 * 192  # One sequence is held out.
    # Every layer is followed through those behind it: half of the model, five layers of eight; the
    # dense model's logits are one more.
    through = 64 * (body * 5 // 2 + 5 * head)
    assert found["probes"] == through + 4 * sum(ridge_flops(192, 64, 135).values())
    repaired = sum(ridge_flops(192, 64, 144).values()) + error_flops(192, 64, 144, 64)
    assert found["solves"] == 4 * repaired
    assert "evaluation" not in found


@pytest.mark.parametrize(
    "pruning",
    [
        {"rounds": 2, "recover": {}, "distill": {}, "structures": ["ffn_channels", "kv_groups"]},
        {"energy": "gradient"},
    ],
    ids=["rounds", "gradient"],
)
def test_whatever_computes_has_operations(facts: ModelFacts, pruning: dict[str, Any]) -> None:
    spec = job(**pruning)
    spec = spec.model_copy(
        update={"calibration": CalibrationSpec(source="self", samples=4, sequence_length=64)}
    )
    graph = build_graph(
        layers=facts.config.layers,
        shards=[range(facts.config.layers)],
        energy=spec.pruning.energy,
        evaluate=False,
        recover=spec.pruning.recover is not None,
        rounds=spec.pruning.rounds,
        distill_steps=0 if spec.pruning.distill is None else spec.pruning.distill.steps,
    )
    found = unit_flops(graph, spec, facts.config, ALL_RESIDENT)
    idle = {name.partition(".")[0] for name, purposes in found.items() if not purposes}
    assert idle <= {"weights", "embed", "price", "allocate", "replay", "assemble", "report"}
    assert all(count > 0 for purposes in found.values() for count in purposes.values())
    summed: Counter[str] = Counter()
    for purposes in found.values():
        summed.update(purposes)
    assert estimate_job(spec, facts).flops == dict(summed)


def test_an_expert_sees_its_share_of_the_tokens() -> None:
    config = shape("mixtral")  # Two experts of four for each token.
    found = flops(job(), config, ALL_RESIDENT)
    width = config.blocks[0].ffn_widths[0]
    assert found["grams"] == 4 * gram_flops(width, 3 * 64 // 2)


def test_training_needs_its_room(facts: ModelFacts) -> None:
    plain, state = estimate_job(job(), facts).workspace_bytes, 4 * 64 * 64 * 4
    matrices = size_of(facts.config, dtype_bytes=4).parameters - 512 * 64 - 64
    trained = estimate_job(job(recover={"mode": "parallel"}), facts)
    assert trained.workspace_bytes == plain + 2 * state
    trained = estimate_job(job(recover={}, distill={}), facts)
    assert trained.workspace_bytes == plain + 5 * state + 2 * 3 * 4 * matrices
    terms = estimate_job(job(recover={}, distill={}), facts).step_bytes
    assert terms["distillation"] > terms["verify"]
    assert terms["recovery"] > terms["verify"]
