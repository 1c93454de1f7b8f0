"""What a job computes in follows from its specification, its model and the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.devices import matrix_products_in
from strucprune_core.plan.estimate import estimate_job
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.precision import precision_of, precisions, with_planned_precision
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.support.tiny_llama import make_tiny_llama


def spec_of(**runtime: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"uri": "m"},
            "output": {"uri_prefix": "o"},
            "pruning": {"sparsity": 0.3},
            "calibration": {"uri": "t.txt"},
            "runtime": runtime,
        }
    )


@pytest.fixture(scope="module")
def stored_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def facts(dtype: torch.dtype) -> ModelFacts:
        path = tmp_path_factory.mktemp("models") / "m"
        make_tiny_llama(path, dtype=dtype)
        return inspect_model(LocalStore(path))

    return facts


def test_auto_is_bfloat16_on_cuda_for_models_of_16_bits(stored_in: Any) -> None:
    of = {dtype: stored_in(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    spec = spec_of()
    for dtype, facts in of.items():
        assert precision_of(spec, facts, "cpu") == "float32"
        wanted = "float32" if dtype == torch.float32 else "bfloat16"
        assert precision_of(spec, facts, "cuda") == wanted
    assert precisions(spec, of[torch.bfloat16]) == {"cpu": "float32", "cuda": "bfloat16"}
    for device in ("cuda", "cuda:1"):
        assert precisions(spec_of(device=device), of[torch.float16]) == {"cuda": "bfloat16"}


def test_what_is_asked_for_is_used(stored_in: Any) -> None:
    facts = stored_in(torch.float32)
    for asked in ("float32", "bfloat16"):
        for device in ("cpu", "cuda"):
            assert precision_of(spec_of(precision=asked), facts, device) == asked
    assert precision_of(spec_of(precision="tf32"), facts, "cuda") == "tf32"


def test_tf32_is_refused_on_a_cpu(stored_in: Any) -> None:
    with pytest.raises(ValidationError, match="mode of GPUs"):
        spec_of(precision="tf32", device="cpu")
    with pytest.raises(InvalidSpec, match="mode of GPUs") as found:
        precision_of(spec_of(precision="tf32"), stored_in(torch.float32), "cpu")
    assert found.value.field == "runtime.precision"


def test_a_plan_is_for_the_precision_that_the_device_gives(stored_in: Any) -> None:
    facts = stored_in(torch.bfloat16)
    wide, unknown, narrow = (
        with_planned_precision(spec_of(**runtime), facts)
        for runtime in ({"device": "cpu"}, {}, {"device": "cuda:1"})
    )
    assert wide.runtime.precision == unknown.runtime.precision == "auto"
    assert narrow.runtime.precision == "bfloat16"
    sizes = [plan_job(each, facts.config).tiles.operand_bytes for each in (wide, unknown, narrow)]
    assert sizes == [4, 4, 2]


def test_an_estimate_names_it_and_warns_of_rounding(stored_in: Any) -> None:
    estimate = estimate_job(spec_of(), stored_in(torch.bfloat16))
    assert estimate.precision == {"cpu": "float32", "cuda": "bfloat16"}
    assert not [line for line in estimate.warnings if "runtime.precision" in line]
    rounded = estimate_job(spec_of(precision="bfloat16"), stored_in(torch.float32))
    (warning,) = [line for line in rounded.warnings if "runtime.precision" in line]
    assert "stored in F32" in warning


def test_a_generic_model_is_left_in_float32(stored_in: Any) -> None:
    facts = stored_in(torch.bfloat16)
    generic: Any = object()
    blocks = facts.config.blocks
    assert precision_of(spec_of(), facts, "cuda") == "bfloat16"
    config = replace(facts.config, generic=generic, blocks=blocks)
    assert precision_of(spec_of(), ModelFacts(facts.index, config), "cuda") == "float32"


def test_matrix_products_are_set_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    for precision, inside in (("tf32", True), ("bfloat16", True), ("float32", False)):
        with matrix_products_in(precision):  # type: ignore[arg-type]
            assert torch.backends.cuda.matmul.allow_tf32 is inside
        assert torch.backends.cuda.matmul.allow_tf32 is before
