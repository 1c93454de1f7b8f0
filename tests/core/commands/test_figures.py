"""Numbers for people, in characters that every terminal has."""

from __future__ import annotations

import pytest

from strucprune_core.commands import figures


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.counts(134_515_008, 118_600_000), "134.5 M -> 118.6 M (-11.8%)"),
        (figures.sizes(269_000_000, 269_000_000), "269 MB -> 269 MB (0%)"),
        (figures.size(1_536_000_000), "1.54 GB"),
        (figures.count(46_080), "46,080"),
        (figures.duration(200), "3 min 20 s"),
        (figures.duration(4320), "1 h 12 min"),
        (figures.percent(0.3), "30.0%"),
        (figures.number(None), "-"),
        (figures.number(float("inf")), "-"),
        (figures.number(23.4912), "23.49"),
        (figures.flops(2.41e12), "2.410 T"),
        (figures.from_to("a", "b"), "a -> b"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected
    assert shown.isascii()
