"""Whole jobs on every family: real prunes reload, prunes of nothing change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from strucprune_core.errors import InvalidSpec
from strucprune_core.export.loading import load_pretrained
from strucprune_core.method.allocation.budget import differs
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.structures import StructureKind, sites
from strucprune_core.models.tensors import expected_tensors, tensor_name
from tests.core.jobs.tiny_job import EASY, run, tiny_spec
from tests.core.models.families import VARIANTS, saved_variant
from tests.core.models.reference import (
    open_stream,
    random_tokens,
    reference_logits,
    streamed_logits,
)
from tests.support.tiny_experts import save_tiny_experts

KINDS: list[list[StructureKind]] = [["ffn_channels", "kv_groups"], ["query_heads"]]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_variant(request.param, tmp_path_factory.mktemp(request.param) / "model")


def grouped_queries(model: Path) -> int:
    """Query heads that share a key-value head."""
    return open_stream(model).config.blocks[0].query_heads_per_kv_head


@pytest.mark.parametrize("kinds", KINDS, ids=["groups", "heads"])
def test_keeping_everything_changes_no_tensor(model: Path, kinds: list[StructureKind]) -> None:
    stream = open_stream(model)
    config = stream.config
    places = [
        (layer, site) for layer in range(config.layers) for site in sites(config, layer, kinds)
    ]

    def keep_all(layer: int, site: Any) -> SiteSolution:
        stored = stream.source.tensor(tensor_name(config, layer, site.output.role))
        weight = stored.T if site.output.axis == 0 else stored
        return SiteSolution(torch.arange(site.structures), weight)

    pruned = PrunedSource(stream.source, config, places, keep_all)
    for name in expected_tensors(config):
        assert torch.equal(pruned.tensor(name), stream.source.tensor(name, dtype=None)), name


@pytest.mark.parametrize(
    "structures",
    [["ffn_channels"], ["ffn_channels", "kv_groups"], ["query_heads"]],
    ids=["ffn", "ffn and groups", "heads"],
)
def test_a_pruned_model_reloads(
    model: Path, text_file: Path, tmp_path: Path, structures: list[str]
) -> None:
    """The job's own reload check has passed; here a user loads the result."""
    spec = tiny_spec(
        model,
        text_file,
        tmp_path / "out",
        pruning={"sparsity": 0.3, "structures": structures},
        evaluation=EASY,
    )
    if structures == ["query_heads"] and grouped_queries(model) == 1:
        with pytest.raises(InvalidSpec, match="none can be removed alone"):
            run(spec, tmp_path)
        return
    report = run(spec, tmp_path)
    assert report.after.parameters < report.before.parameters
    assert 0.25 <= report.sparsity.reached < 0.8  # few heads are coarse
    said = any("0.3 was asked for" in line for line in report.warnings)
    assert said == differs(0.3, report.sparsity.reached)
    if structures == ["query_heads"]:
        assert report.after.kv_cache_bytes_per_token == report.before.kv_cache_bytes_per_token
    loaded = load_pretrained(str(tmp_path / "out")).eval()
    loaded.config._attn_implementation = "eager" if "gemma" in report.model.architecture else "sdpa"
    assert sum(p.numel() for p in loaded.parameters()) == report.after.parameters
    stream = open_stream(tmp_path / "out")
    tokens = random_tokens(2, 24, 512)
    torch.testing.assert_close(
        streamed_logits(stream, tokens, tmp_path),
        reference_logits(loaded, tokens),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("structures", [["ffn_channels"], ["ffn_channels", "kv_groups"]])
def test_a_uniform_model_is_plain(
    model: Path, text_file: Path, tmp_path: Path, structures: list[str]
) -> None:
    """Its config names the family's own class, which loads it without any code of ours."""
    pruning = {"sparsity": 0.5, "structures": structures, "layout": "uniform"}
    spec = tiny_spec(
        model,
        text_file,
        tmp_path / "out",
        pruning=pruning,
        evaluation=EASY,
    )
    dense = open_stream(model).config
    if len({block.ffn_widths for block in dense.blocks}) > 1:  # experts beside a plain FFN
        with pytest.raises(InvalidSpec, match="already differ"):
            run(spec, tmp_path)
        return
    rope = dense.blocks[0].rope
    longrope = dense.family == "phi3" and rope is not None and rope.type == "longrope"
    if len(structures) > 1 and (dense.family in ("opt", "gpt2", "gpt_neox") or longrope):
        with pytest.raises(InvalidSpec, match="no uniform layout"):
            run(spec, tmp_path)
        return
    if len(structures) > 1 and dense.blocks[0].kv_heads == 1:
        with pytest.raises(InvalidSpec, match="nothing to remove"):
            run(spec, tmp_path)
        return
    report = run(spec, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert type(loaded).__module__.startswith("transformers.models.")
    assert sum(p.numel() for p in loaded.parameters()) == report.after.parameters


def test_experts_of_a_width_that_cannot_be_multiplied_are_refused(
    text_file: Path, tmp_path: Path
) -> None:
    """Before any work: transformers' class would fail on the result, as our reload check would."""
    model = save_tiny_experts("mixtral", tmp_path / "model")
    uniform = {"layout": "uniform", "sparsity": 0.3}
    odd = tiny_spec(model, text_file, tmp_path / "odd", pruning=uniform, evaluation=EASY)
    with pytest.raises(InvalidSpec, match="needs multiples of 4") as caught:
        run(odd, tmp_path / "1")
    assert caught.value.field == "pruning.multiple_of"
    even = {**uniform, "multiple_of": 4}
    run(tiny_spec(model, text_file, tmp_path / "even", pruning=even, evaluation=EASY), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "even", trust_remote_code=False)
    assert loaded(input_ids=torch.arange(12).view(1, 12)).logits.isfinite().all()
