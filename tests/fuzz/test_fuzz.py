"""A short, seeded part of `make fuzz`."""

from __future__ import annotations

from collections import Counter

import pytest

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models import tensors
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import tensor_name
from strucprune_core.plan.inspection import inspect_model
from tests.core.models.hub_configs import HUB
from tests.fuzz.mutations import dumped
from tests.fuzz.targets import TARGETS, MemoryStore, ReadOutside, outcome_of, read_within

INPUTS = 1000


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_refused_or_right(name: str) -> None:
    outcomes = Counter(
        outcome_of(TARGETS[name], f"{name}:test:{number}") for number in range(INPUTS)
    )
    assert outcomes["invalid_checkpoint"] > INPUTS / 5
    # Some mutations do no harm: without them, it would not be known that good files still pass.
    assert outcomes["accepted"] > 0


def test_the_watch_itself() -> None:
    for start, length in ((-1, 1), (0, 4), (3, 1), (4, None), (2, -1)):
        with pytest.raises(ReadOutside):
            read_within(b"abc", start, length)


def test_a_small_file_that_claims_millions_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte must not become gigabytes of names in the memory of whoever looks at it."""
    named = 0

    def counted(config: ModelConfig, layer: int, role: str) -> str:
        nonlocal named
        named += 1
        assert named < 10_000
        return tensor_name(config, layer, role)

    monkeypatch.setattr(tensors, "tensor_name", counted)
    claims = {
        "num_hidden_layers": 1024,
        "num_experts": 2**14,
        "hidden_size": 16,
        "moe_intermediate_size": 8,
    }
    config, _ = HUB["Qwen/Qwen3-30B-A3B"]
    header = b"{}"
    objects = {
        "config.json": dumped({**config, **claims}),
        "tokenizer.json": b"{}",
        "model.safetensors": len(header).to_bytes(8, "little") + header,
    }
    with pytest.raises(InvalidCheckpoint, match="at least 16777216 tensors"):
        inspect_model(MemoryStore(objects))
