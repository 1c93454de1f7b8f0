"""Updates on layers: all that the report will say, as soon as it is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import Stopped
from strucprune_core.plan import graph as units
from strucprune_core.report.document import Report
from strucprune_core.run.layer_updates import LayerUpdate, as_columns, merged
from strucprune_core.spec import JobSpec
from tests.core.jobs.tiny_job import StopOnceFinished, checkpoint_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

LAYERS = 3
Batches = list[list[LayerUpdate]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=LAYERS, intermediate=96)


def all_of(batches: Batches) -> list[LayerUpdate]:
    return merged(one for updates in batches for one in updates)


def in_report(report: Report) -> list[LayerUpdate]:
    names = set(LayerUpdate.__dataclass_fields__)
    return [LayerUpdate(**layer.model_dump(include=names)) for layer in report.layers]


def test_what_comes_later_counts() -> None:
    updates = [
        LayerUpdate(2, energy=1.0),
        LayerUpdate(0, width_after=7),
        LayerUpdate(2, energy=3.0),
    ]
    updates.append(LayerUpdate(2, reconstruction_error=0.5))
    assert merged(updates) == [
        LayerUpdate(0, width_after=7),
        LayerUpdate(2, energy=3.0, reconstruction_error=0.5),
    ]


def test_columns_are_short_and_valid_json() -> None:
    updates = [LayerUpdate(0, energy=1 / 3, width_after=0), LayerUpdate(1, energy=math.nan)]
    updates.append(LayerUpdate(2, predicted_damage=math.inf))
    columns = as_columns(updates)
    assert columns == {
        "index": [0, 1, 2],
        "width_after": [0, None, None],
        "energy": [0.333333, None, None],
    }
    json.dumps(columns, allow_nan=False)


def test_a_large_model_fits_an_event() -> None:
    share = 1 / 3
    updates = [
        LayerUpdate(layer, 28672, 21504, 128, 112, share, share, share) for layer in range(256)
    ]
    assert len(json.dumps(as_columns(updates))) < 16_000


@pytest.mark.parametrize(
    ("pruning", "kinds"),
    [
        ({}, ["energy"] * LAYERS + ["width"] + ["error"] * LAYERS),
        ({"energy": "gradient"}, ["energy"] * LAYERS + ["width"] + ["error"] * LAYERS),
        ({"energy": "forward"}, ["width"] + ["error"] * LAYERS),
        ({"rounds": 2}, ["energy"] * LAYERS + ["width"] * 3 + ["error"] * LAYERS),
        (
            {"structures": ["ffn_channels", "query_heads"]},
            ["energy"] * LAYERS + ["width"] + ["error"] * LAYERS,
        ),
    ],
    ids=["probe", "gradient", "forward", "rounds", "heads"],
)
def test_energies_then_widths_then_errors(
    tmp_path: Path,
    model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruning: dict[str, Any],
    kinds: list[str],
) -> None:
    monkeypatch.setattr(units, "PROBE_GROUP_LAYERS", 1)
    batches: Batches = []
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning)
    report = run(spec, tmp_path, layers=lambda updates: batches.append([*updates]))
    assert [kind_of(updates) for updates in batches] == ["dense", *kinds]
    assert [(one.width_before, one.query_heads_before) for one in batches[0]] == [(96, 4)] * LAYERS
    assert all_of(batches) == in_report(report)
    measured = [updates[0] for updates in batches if kind_of(updates) == "energy"]
    if "rounds" not in pruning:
        # What is measured first is what the report says in the end.
        assert {one.index: one.energy for one in measured}.items() <= {
            layer.index: layer.energy for layer in report.layers
        }.items()


def kind_of(updates: list[LayerUpdate]) -> str:
    if updates[0].reconstruction_error is not None:
        return "error"
    if updates[0].width_after is not None:
        return "width"
    return "dense" if updates[0].energy is None else "energy"


@pytest.mark.parametrize("unit", ["probe.0", "allocate", "solve.1", "verify"])
def test_the_next_attempt_begins_with_all_that_is_known(
    tmp_path: Path, spec: JobSpec, unit: str
) -> None:
    before: Batches = []
    with pytest.raises(Stopped):
        run(
            spec,
            tmp_path,
            stop=StopOnceFinished(tmp_path, unit),
            layers=lambda updates: before.append([*updates]),
        )
    after: Batches = []
    report = run(spec, tmp_path, layers=lambda updates: after.append([*updates]))
    assert after[0] == all_of(before)
    assert all_of(after) == in_report(report)


def test_energies_whose_curves_are_lost_wait_for_them(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Stopped):
        run(spec, tmp_path, stop=StopOnceFinished(tmp_path, "probe.0"))
    for path in (tmp_path / "workspace/units/curve.1").rglob("*.safetensors"):
        path.unlink()
    batches: Batches = []
    report = run(spec, tmp_path, layers=lambda updates: batches.append([*updates]))
    assert [kind_of(updates) for updates in batches[:2]] == ["dense", "width"]
    assert all_of(batches) == in_report(report)
    assert checkpoint_of(tmp_path / "out") == expected
