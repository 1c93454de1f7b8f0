"""Wrong values are refused with words that help; right ones are documented."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm_python import Chart
from helm_python.errors import HelmError

from tests.ship.chart import CHART, ROOT, render


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    result: dict[str, Any] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("replicas", 3, ["replicas", "not allowed"]),
        ("api.replica", 3, ["replica", "not allowed"]),
        ("api.replicas", "three", ["/api/replicas", "string", "integer"]),
        ("api.replicas", -1, ["/api/replicas", "minimum"]),
        ("api.service.port", 70000, ["/api/service/port", "maximum"]),
        ("api.service.type", "External", ["/api/service/type", "ClusterIP"]),
        ("image.api.tag", "latest", ["/image/api/tag", "not"]),
        ("image.worker.digest", "sha256:abc", ["/image/worker/digest", "sha256:[0-9a-f]{64}"]),
        ("stateUri", "s3:/bucket/state", ["/stateUri", "s3://"]),
        ("stateUri", "file:///state", ["/stateUri", "s3://"]),
        ("s3.endpointUrl", "minio:9000", ["/s3/endpointUrl", "https?://"]),
        ("s3.addressingStyle", "paths", ["/s3/addressingStyle", "virtual"]),
        ("redis.existingSecret.name", "", ["/redis/existingSecret/name", "minLength"]),
        ("redis.url", "redis://:password@host", ["url", "not allowed"]),
        ("auth.allowedPrefixes", {"a b": []}, ["a b", "not allowed"]),
        ("auth.allowedPrefixes.acme", ["/data"], ["/auth/allowedPrefixes/acme/0", "s3://"]),
        ("auth.hubRepositories.acme", ["org"], ["/auth/hubRepositories/acme/0", "datasets/"]),
        ("auth.hubRepositories", {"a b": []}, ["a b", "not allowed"]),
        ("hub.endpoint", "huggingface.co", ["/hub/endpoint", "https?://"]),
        ("hub.token", "hf_x", ["token", "not allowed"]),
        ("worker.pools.H100", {}, ["H100", "not allowed"]),
        ("worker.pools.h100.gpus", 1, ["gpus", "not allowed"]),
        ("worker.pools.h100.gpu.count", 8, ["/worker/pools/h100/gpu/count", "maximum"]),
        ("worker.pools.h100.device", "gpu", ["/worker/pools/h100/device", "cuda"]),
        ("worker.pools.h100.resources.limits", {"memory": "16GB"}, ["limits/memory", "Gi"]),
        ("worker.graceSeconds", 0, ["/worker/graceSeconds", "minimum"]),
        ("worker.extraEnv", [], ["extraEnv", "not allowed"]),
        ("api.extraEnv", [{"NAME": "value"}], ["/api/extraEnv/0", "name"]),
        ("networkPolicy.redis.ports", [], ["/networkPolicy/redis/ports", "minItems"]),
        ("networkPolicy.webhooks.to", [], ["/networkPolicy/webhooks/to", "minItems"]),
        ("limits", {"open jobs": 3}, ["open jobs"]),
        ("tenantLimits", {"acme": 3}, ["/tenantLimits/acme", "object"]),
        ("retentionDays", 0, ["/retentionDays", "xclusive"]),
        ("gpuMemory", "20 GB", ["/gpuMemory"]),
        ("webhooks.hosts", "hooks.example.com", ["/webhooks/hosts", "array"]),
        ("mlflow.trackingUri", "mlflow", ["/mlflow/trackingUri", "https?://"]),
        ("mlflow.trackingUri", "https://user:password@host", ["/mlflow/trackingUri"]),
        ("metrics.serviceMonitor.interval", 30, ["/metrics/serviceMonitor/interval", "string"]),
    ],
)
def test_a_wrong_value_is_named(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(HelmError) as caught:
        render(nested(path, value))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"worker": {"heartbeatSeconds": 40}}, "at most half of worker.leaseSeconds"),
        ({"worker": {"pools": {"a": {"autoscaling": {"enabled": True}}}}}, "keda.prometheusUrl is"),
        (
            {
                "keda": {"prometheusUrl": "http://prometheus"},
                "worker": {"pools": {"a": {"autoscaling": {"enabled": True, "minReplicas": 9}}}},
            },
            "worker.pools.a.autoscaling.minReplicas is above maxReplicas",
        ),
        ({"api": {"autoscaling": {"minReplicas": 9}}}, "minReplicas is above"),
        ({"api": {"ingress": {"enabled": True}}}, "api.ingress.host is needed"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name is needed"),
        ({"externalSecrets": {"enabled": True}}, "secretStoreRef.name is needed"),
        (
            {"externalSecrets": {"enabled": True, "secretStoreRef": {"name": "vault"}}},
            "externalSecrets.remoteKeys.auth is needed",
        ),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError, match=words):
        render(values)


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def schema_leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, part in schema["properties"].items():
        if "properties" in part:
            yield from schema_leaves(part, (*path, name))
        else:
            yield (*path, name)


def test_values_and_schema_have_the_same_keys() -> None:
    with Chart.load(CHART) as chart:
        values, schema = chart.values, chart.schema
    assert schema is not None
    in_schema = set(schema_leaves(schema)) - {("global",)}
    in_values = set(leaves(values))
    for path in in_schema:  # maps and pools have keys of their own below
        assert any(leaf[: len(path)] == path for leaf in in_values), path
    for leaf in in_values:
        assert any(leaf[: len(path)] == path for path in in_schema), leaf
    pool = schema["$defs"]["pool"]["properties"]
    assert set(pool) == set(values["worker"]["poolDefaults"])


def test_the_readme_is_what_the_values_say() -> None:
    done = subprocess.run(
        [sys.executable, "helm/readme.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert readme == done.stdout, "run `make chart`"
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for path in leaves(values):
        names = {f"| `{'.'.join(path[:length])}` |" for length in range(1, len(path) + 1)}
        assert any(name in readme for name in names), f"{'.'.join(path)} is not described"
