"""The benchmark of speed leaves nothing of a job out."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.speed import PHASES, PURPOSES, _exponent, _job
from strucprune_core.method.linalg.panels import ALL_RESIDENT
from strucprune_core.plan.graph import build_graph
from strucprune_core.plan.work import flops
from tests.core.plan.shapes import shape


def test_every_unit_and_every_operation_belongs_to_a_phase() -> None:
    units = build_graph(layers=2, shards=[range(2)], energy="kl_probe", evaluate=False)
    kinds = {kind for kinds in PHASES.values() for kind in kinds}
    assert kinds == {unit.kind for unit in units} | {"publish"}
    options = argparse.Namespace(samples=4, sequence_length=64, sparsity=0.3)
    spec = _job(Path("/model"), Path("/text.txt"), options, Path("/root"))
    purposes = {purpose for purposes in PURPOSES.values() for purpose in purposes}
    assert purposes == set(flops(spec, shape("llama"), ALL_RESIDENT))
    assert set(PURPOSES) == set(PHASES)


def test_an_exponent_is_a_slope() -> None:
    assert round(_exponent((2, 4, 8), [12, 48, 192]), 6) == 2.0
