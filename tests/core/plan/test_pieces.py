"""Whole jobs under a limit: what was planned, against the tensors that lived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from strucprune_core.errors import InvalidSpec, OutOfMemory
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan import pieces as plan_module
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.plan.pieces import MARGIN, Plan, plan_job
from strucprune_core.run import opening
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import files_of, run, tiny_spec
from tests.core.models.families import random_model
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
from tests.support.tiny_llama import make_tiny_llama, save_tokenizer

AMPLE = 10**9
SMALL_PIECES = Plan(Tiles(64, 8, 100, 30), Panels(16, 16), {"all": 1})


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / "model"
    made = make_tiny_llama(directory, layers=2, **SHAPES[request.param])
    in_half_precision(made)
    return made


def planned(spec: JobSpec) -> Plan:
    return plan_job(spec, inspect_model(LocalStore(Path(spec.model.uri))).config)


def least(spec: JobSpec) -> int:
    """The smallest limit that is accepted, as the refusal of a smaller one says."""
    with pytest.raises(InvalidSpec) as refused:
        planned(spec.model_copy(update={"runtime": limited_runtime(spec, 2**20)}))
    assert refused.value.field == "runtime.device_memory_bytes"
    words = str(refused.value.remedy).split()
    return int(words[words.index("least") + 1].replace(",", ""))


def limited_runtime(spec: JobSpec, limit: int) -> Any:
    return spec.runtime.model_copy(update={"device_memory_bytes": limit})


@pytest.mark.parametrize("share", [None, 0.6, 0.4])
def test_a_job_takes_what_was_planned_and_no_more(
    tmp_path: Path, model: Path, text_file: Path, share: float | None
) -> None:
    ample = limited(model, text_file, tmp_path / "out", AMPLE)
    limit = AMPLE if share is None else int(share * planned(ample).device_peak_bytes)
    spec = limited(model, text_file, tmp_path / "out", limit)
    plan = planned(spec)
    assert plan.device_peak_bytes * MARGIN <= limit
    report = run(spec, tmp_path)
    measured = report.memory.device_peak_bytes.measured
    assert measured is not None
    assert measured <= limit
    assert plan.device_peak_bytes == pytest.approx(measured, rel=0.1)


def test_the_smallest_limit_that_is_named_will_do(
    tmp_path: Path, model: Path, text_file: Path
) -> None:
    spec = limited(model, text_file, tmp_path / "out", 2**20)
    smallest = least(spec)
    run(limited(model, text_file, tmp_path / "out", smallest), tmp_path)


@pytest.mark.parametrize("variant", ["opt", "gemma2", "mixtral", "gpt2", "phi3"])
def test_every_kind_of_model_runs_in_pieces(tmp_path: Path, variant: str) -> None:
    """And gives nearly the same model: only rounding differs."""
    directory = tmp_path / "model"
    model = random_model(variant)
    model.save_pretrained(directory)
    text = tmp_path / "text.txt"
    text.write_text(make_text(), encoding="utf-8")
    save_tokenizer(directory, text=make_text(), vocab=model.config.vocab_size)
    found: list[dict[str, torch.Tensor]] = []
    for name in ("whole", "pieces"):
        spec = limited(directory, text, tmp_path / name, None)
        with pytest.MonkeyPatch.context() as patch:
            if name == "pieces":
                patch.setattr(opening, "plan_job", lambda *_: SMALL_PIECES)
            run(spec, tmp_path / f"run-{name}")
        found.append(load_file(tmp_path / name / "model.safetensors"))
    whole, pieces = found
    assert {n: t.shape for n, t in whole.items()} == {n: t.shape for n, t in pieces.items()}
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_job_that_exceeds_its_plan_fails(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1, **SHAPES["wide_ffn"])
    monkeypatch.setattr(plan_module, "device_terms", lambda *_: {"all": 2**20})
    spec = limited(model, text_file, tmp_path / "out", 2 * 2**20)
    with pytest.raises(OutOfMemory, match="the plan allows"):
        run(spec, tmp_path)
    assert not files_of(tmp_path / "out")


def test_without_a_limit_small_layers_are_resident_and_large_ones_are_not() -> None:
    small, large = (
        shape("llama", hidden_size=hidden, intermediate_size=4 * hidden) for hidden in (512, 8192)
    )
    spec = limited(Path("m"), Path("t"), Path("o"), None)
    assert plan_job(spec, small).tiles.weight_rows is None
    assert plan_job(spec, large).tiles.weight_rows is not None
    assert plan_job(spec, large).panels.panel < 4 * 8192


def test_more_memory_never_means_smaller_pieces(tmp_path: Path, text_file: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1, **SHAPES["large"])
    needs = []
    for limit in (4 * 10**6, 5 * 10**6, 8 * 10**6, 12 * 10**6, AMPLE):
        plan = planned(limited(model, text_file, tmp_path / "out", limit))
        needs.append(plan.device_peak_bytes)
    assert needs == sorted(needs)


def test_a_large_device_is_used() -> None:
    """Whole layers, whole Gram matrices, many tokens; hidden states stay from layer to layer."""
    config = shape("llama", **SEVEN_BILLION)
    plan = plan_job(large_job(20 * GIB), config)
    assert plan.tiles.whole_layers
    assert plan.panels == Panels()
    assert plan.tiles.micro_batch_tokens >= 8192
    assert plan.tiles.resident_tokens == 128 * 2048
    assert plan.tiles.vocabulary_rows == config.vocab_size
    assert plan.device_peak_bytes * MARGIN <= 20 * GIB


def test_what_saves_most_copies_is_kept_longest() -> None:
    """With less memory hidden states go to scratch, then Gram matrices, and layers at last."""
    config, plans = shape("llama", **SEVEN_BILLION), {}
    for gib in (20, 4, 2, 1.5):
        plans[gib] = plan_job(large_job(int(gib * GIB)), config)
    text = 128 * 2048
    assert [plan.tiles.resident_tokens >= text for plan in plans.values()] == [True] + 3 * [False]
    assert [plan.panels == Panels() for plan in plans.values()] == [True, True, False, False]
    assert [plan.tiles.whole_layers for plan in plans.values()] == [True, True, True, False]


def test_more_tokens_than_asked_for_are_never_taken() -> None:
    plan = plan_job(large_job(20 * GIB, micro_batch_tokens=6000), shape("llama", **SEVEN_BILLION))
    assert plan.tiles.micro_batch_tokens == 6000


def test_nothing_is_known_of_a_device_without_a_limit() -> None:
    plan = plan_job(large_job(None), shape("llama", **SEVEN_BILLION))
    assert plan.tiles == Tiles(micro_batch_tokens=4096, weight_rows=1024)


@pytest.mark.parametrize("structures", [["layers"], ["attention_blocks", "ffn_blocks"]])
def test_blocks_alone_need_no_whole_matrices(structures: list[str], text_file: Path) -> None:
    """What is solved behind a removed block is solved in panels, as channels are."""
    wide = shape("llama", num_hidden_layers=4, intermediate_size=2048)
    pruning: dict[str, Any] = {"sparsity": 0.4, "structures": ["ffn_channels"]}
    runtime = {"device_memory_bytes": 2**23}

    def plan(pruning: dict[str, Any]) -> Plan:
        model = output = Path("/unused")
        return plan_job(tiny_spec(model, text_file, output, pruning=pruning, runtime=runtime), wide)

    channels = plan(pruning)
    blocks = plan({**pruning, "structures": structures})
    assert blocks.panels.panel <= 2 * channels.panels.panel
    assert blocks.device_peak_bytes * MARGIN <= 2**23
