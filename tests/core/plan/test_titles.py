"""Phases and units say in plain English what they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strucprune_core.plan.titles import PHASE_TITLES, UNIT_TITLES, phase_title, unit_title
from strucprune_core.run.artifacts import Artifacts
from strucprune_core.run.progress import Phase


def _kinds(of: type[Artifacts]) -> Iterator[str]:
    for kind in of.__subclasses__():
        yield from _kinds(kind)
        if "kind" in vars(kind):
            yield kind.kind


def test_every_phase_and_every_kind_of_unit_has_a_title() -> None:
    assert {*UNIT_TITLES} == {*_kinds(Artifacts), "publish"}
    assert {*PHASE_TITLES} == {*Phase}


@pytest.mark.parametrize(
    ("unit", "title"),
    [
        ("capture.7", "Measure layer 7 on the calibration text"),
        ("solve.7@0.3", "Prune and repair layer 7, size 0.3"),
        ("solve.7@try2", "Prune and repair layer 7, try 2"),
        ("tokens", "Turn the calibration text into tokens"),
        ("tokens.evaluation", "Turn the evaluation text into tokens"),
        ("trial.2.5", "Try layer 5 at the widths of round 2"),
        ("evaluate.dense", "Measure perplexity: dense"),
        ("sizes@0.2+0.3", "Write the report on all sizes"),
        ("publish", "Copy the result to the output"),
        ("trial.2", "trial.2"),
        ("unheard-of.3", "unheard-of.3"),
        ("captured.7", "captured.7"),
    ],
)
def test_a_unit_says_what_it_does(unit: str, title: str) -> None:
    assert unit_title(unit) == title


def test_a_phase_of_another_release_keeps_its_name() -> None:
    assert phase_title("solving") == "Pruning and repairing layers"
    assert phase_title("dreaming") == "dreaming"
