"""A short, seeded part of `make fuzz`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz.targets import TARGETS, ReadOutside, outcome_of, read_within

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
