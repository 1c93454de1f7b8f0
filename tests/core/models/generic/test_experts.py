"""Experts of tiny models: what the table says of them is what is found, and is tried again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strucprune_core.evaluation.experts_check import TOLERANCE
from strucprune_core.models.generic.expert_table import expert_table
from strucprune_core.models.generic.modules import model_of
from strucprune_core.models.generic.routed import (
    ExpertSums,
    NoRecord,
    can_record,
    masking,
    recording,
)
from tests.coverage.experts import as_experts_entry, examine_experts
from tests.coverage.tiny import tiny_config

# One tensor per expert, and a plain first layer; one for all, with biases; a class of its own; a
# router with rows that are no routed expert's; a number of chosen experts that no key says.
SAMPLE = ["deepseek_v3", "gpt_oss", "llama4_text", "inkling_text", "phimoe", "qwen3_vl_moe"]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_the_table_says_what_is_found(model_type: str) -> None:
    examined = examine_experts(model_type)
    assert as_experts_entry(examined.found) == expert_table()["model_types"][model_type]
    assert examined.masked_difference <= TOLERANCE
    assert examined.reload_difference <= TOLERANCE


def test_a_layer_without_experts_is_not_recorded() -> None:
    layer = model_of(tiny_config("llama")).model.layers[0]
    assert not can_record(layer)
    with pytest.raises(NoRecord, match="way of its own"), recording(layer, ExpertSums(4)):
        pytest.fail("it was recorded")


def test_scores_are_masked_and_nothing_else() -> None:
    router, other = torch.randn(4, 8), torch.randn(4, 8)
    tokens = torch.randn(3, 8)
    plain: Any = [torch.nn.functional.linear(tokens, each) for each in (router, other)]
    with masking(lambda: [router], [1, 3]):
        scores = torch.nn.functional.linear(tokens, router)
        same = torch.nn.functional.linear(tokens, other)
        product = tokens @ router.T
    assert torch.equal(same, plain[1])
    assert torch.equal(scores[:, [0, 2]], plain[0][:, [0, 2]])
    assert bool((scores[:, [1, 3]] < -1e8).all())
    assert bool((product[:, [1, 3]] < -1e8).all())
