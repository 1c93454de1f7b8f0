"""Rows of the pruned model against its whole tensors, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strucprune_core.models import pruned_weights as pruned_source
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.structures import Site, StructureKind, sites
from strucprune_core.models.tensors import expected_tensors, layer_tensors
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.reference import stream_of

KINDS: list[list[StructureKind]] = [["ffn_channels", "kv_groups"], ["query_heads"]]


@pytest.mark.parametrize("gap", [1, 64])
@pytest.mark.parametrize("kinds", KINDS, ids=["groups", "heads"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_those_of_the_tensor(
    tmp_path: Path,
    variant: str,
    kinds: list[StructureKind],
    gap: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pruned_source, "GAP_ROWS", gap)
    stream = stream_of(random_model(variant), tmp_path)
    config = stream.config
    places = [(0, site) for site in sites(config, 0, kinds)]

    def some(layer: int, site: Site) -> SiteSolution:
        draw = torch.Generator().manual_seed(site.structures)
        kept = torch.randperm(site.structures, generator=draw)[: -(-site.structures // 2)]
        inputs = layer_tensors(config, layer)[site.output.role][1 - site.output.axis]
        weight = torch.randn(inputs, len(kept) * site.columns, generator=draw)
        return SiteSolution(kept.sort().values, weight)

    source = PrunedSource(stream.source, config, places, some)
    for name in expected_tensors(config):
        for dtype in (None, torch.float64):
            whole = source.tensor(name, dtype=dtype)
            for start, stop in ((0, len(whole)), (0, 0), (1, len(whole) // 2 + 1)):
                found = source.rows(name, start, stop, dtype=dtype)
                assert found.dtype == whole.dtype
                assert torch.equal(found, whole[start:stop]), (name, start, stop)
