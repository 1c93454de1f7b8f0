"""Commands do not measure this machine: how fast it is stands for itself elsewhere."""

from __future__ import annotations

import pytest

from strucprune_core.evaluation import known_rates
from tests.support.rates import RATES


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_rates, "known_rates", lambda *_: RATES)
