from __future__ import annotations

import pytest

from benchmarks.wide_curve import compare


def test_both_curves_are_compared() -> None:
    found = compare(channels=256, hidden=64)
    assert found["float32_was_used"] is True
    for each in found["by_share_removed"].values():
        assert each["same_channels"] > 0.9
        assert each["damage_ratio"] == pytest.approx(1.0, rel=1e-3)
