"""The ledger that the chart and the compose file start refuses to grow before it is killed."""

from __future__ import annotations

import yaml

from api.jobs.limits import TenantLimits
from tests.ship.chart import ROOT, pods, render


def megabytes(command: list[str]) -> int:
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    value = command[command.index("--maxmemory") + 1]
    assert value.endswith("mb")
    return int(value.removesuffix("mb"))


def test_the_charts_valkey_is_full_before_its_container_is() -> None:
    (valkey,) = [
        pod.container
        for pod in pods(render({"valkey": {"enabled": True}}))
        if pod.container["name"] == "valkey"
    ]
    limit = valkey["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert megabytes(valkey["command"]) <= 0.8 * int(limit.removesuffix("Mi"))
    _room_for_two(megabytes(valkey["command"]))


def test_the_compose_files_valkey_is_bounded() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    _room_for_two(megabytes(compose["services"]["valkey"]["command"]))


def _room_for_two(most: int) -> None:
    """One tenant at the default limit leaves as much for another."""
    kept = TenantLimits().kept_bytes
    assert kept is not None
    assert 2 * kept < most * 2**20
