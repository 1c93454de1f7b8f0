"""What the Dockerfiles and the compose file promise, as far as it shows without building.

`make images` builds both and runs the product with them; `make compose` starts the compose file.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from api.settings import Settings
from docker.stand_ins import TAGS
from embedded.s3 import S3Server
from tests.ship.chart import ROOT
from worker.settings import Settings as WorkerSettings

DOCKER = ROOT / "docker"
DOCKERFILES = {name: (DOCKER / f"{name}.Dockerfile").read_text() for name in ("api", "worker")}
PINNED = re.compile(r"[a-z0-9/]+:\d+\.\d+(\.\d+)?[a-z0-9.-]*@sha256:[0-9a-f]{64}")

each_image = pytest.mark.parametrize("image", DOCKERFILES)


@each_image
def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    command = [str(hadolint), "--no-color", str(DOCKER / f"{image}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
    assert "hadolint ignore" not in DOCKERFILES[image]


def instructions(image: str, name: str) -> list[str]:
    """Arguments of all instructions of a kind in the last stage."""
    text = DOCKERFILES[image].replace("\\\n", " ")
    stage = re.split(r"^FROM .*$", text, flags=re.MULTILINE)[-1]
    return re.findall(rf"^{name}\s+(.*)$", stage, re.MULTILINE)


@each_image
def test_images_are_hardened(image: str) -> None:
    (base,) = set(re.findall(r"^ARG BASE=(.*)$", DOCKERFILES[image], re.MULTILINE))
    assert PINNED.fullmatch(base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILES[image], re.MULTILINE)) == {"${BASE}"}
    assert instructions(image, "USER") == ["10001:10001"]
    assert instructions(image, "ENTRYPOINT") == ['["/usr/bin/tini", "--"]']
    assert len(instructions(image, "HEALTHCHECK")) == 1
    (labels,) = instructions(image, "LABEL")
    for label in ("title", "description", "version", "revision", "licenses", "base.name"):
        assert f"org.opencontainers.image.{label}=" in labels
    # Nothing of ours belongs to the user that runs it.
    assert not any("--chown" in copy for copy in instructions(image, "COPY"))


@each_image
def test_a_slow_start_is_not_a_failed_one(image: str) -> None:
    """On two busy cores the API took 70 s; the first success ends the period anyway."""
    (check,) = instructions(image, "HEALTHCHECK")
    assert "--start-period=120s" in check


def test_both_images_have_the_same_base() -> None:
    first, second = (re.findall(r"^ARG BASE=.*$", text, re.M) for text in DOCKERFILES.values())
    assert first == second


def copied(image: str) -> list[str]:
    """What the last stage copies from the repository."""
    copies = [copy.split() for copy in instructions(image, "COPY")]
    return [words[0] for words in copies if not words[0].startswith("--from")]


@each_image
def test_what_is_copied_is_not_ignored(image: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    for path in [*copied(image), "pyproject.toml", "constraints.txt"]:
        assert f"!{path.split('/')[0]}" in ignore
        assert (ROOT / path).exists()


def requirements(image: str) -> list[str]:
    """What the image installs, as pip is told."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    own: list[str] = []
    if image == "worker":
        whole = project["project"]
        own = [*whole["dependencies"], *whole["optional-dependencies"]["tasks"]]
    return [*own, *project["dependency-groups"][image]]


def installed_for(image: str) -> set[str]:
    """Names of all distributions that its requirements bring along."""
    found: set[str] = set()
    todo = [(Requirement(text), "") for text in requirements(image)]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # CUDA libraries, beside a CPU build of torch
        todo += [
            (Requirement(text), wanted) for text in needed for wanted in (*requirement.extras, "")
        ]
    return found


def forbidden_modules(image: str) -> list[str]:
    """Top-level modules of this environment that the image does not have."""
    there = installed_for(image) | {"strucprune"}  # copied, not installed
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & there
    )


def test_the_api_image_has_no_torch() -> None:
    assert not {"torch", "transformers", "gguf", "typer"} & installed_for("api")
    assert {"torch", "transformers", "celery", "redis"} <= installed_for("worker")
    assert not {"fastapi", "uvicorn", "pytest"} & installed_for("worker")


_IMPORT_ALL = """
import importlib, importlib.abc, pkgutil, sys

forbidden = set(sys.argv[2].split(","))

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"not in the image: {name}", name=name)

sys.meta_path.insert(0, Absent())
for package in sys.argv[1].split(","):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
assert ("torch" in sys.modules) == ("worker.solve" in sys.modules)
print(*sorted(name for name in sys.modules if name.startswith("strucprune_core")))
"""


@pytest.mark.parametrize(("image", "packages"), [("api", "api"), ("worker", "worker")])
def test_an_image_has_all_that_it_imports(image: str, packages: str, tmp_path: Path) -> None:
    """All modules load from what is copied, with what is installed, and nothing else."""
    for path in copied(image):
        target = tmp_path / path
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, target)
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, packages, ",".join(forbidden_modules(image))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "strucprune_core.spec" in done.stdout.split()


def test_the_api_image_can_log_to_mlflow() -> None:
    """MLflow's client is imported only where a server is named, with what the image has."""
    first, _, _ = _IMPORT_ALL.partition("for package in")
    code = (
        # What asks whether a package is there is told that it is not, as in the image.
        f"{first}import importlib.util\n"
        "whole = importlib.util.find_spec\n"
        "def found(*name):\n"
        "    try:\n"
        "        return whole(*name)\n"
        "    except ModuleNotFoundError:\n"
        "        return None\n"
        "importlib.util.find_spec = found\n"
        "from api.mlflow.server import MlflowServer\n"
        "assert 'mlflow' not in sys.modules\n"
        "MlflowServer('http://127.0.0.1:9')\n"
        "import mlflow.store.artifact.mlflow_artifacts_repo\n"
        "from mlflow.entities import Metric, Param, RunTag\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "", ",".join(forbidden_modules("api"))],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {"api": Settings, "reconciler": Settings, "worker": WorkerSettings}


def test_compose_has_the_whole_product() -> None:
    started = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert started == {"valkey", "s3", "buckets", "api", "reconciler", "worker"}
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    for name in ("valkey", "s3"):
        assert PINNED.fullmatch(SERVICES[name]["image"])
    for service in SERVICES.values():
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:")
        assert set(service.get("depends_on", [])) <= set(SERVICES)


def test_compose_has_a_worker_for_each_gpu() -> None:
    ordinary = {name: value for name, value in SERVICES["worker"].items() if name != "deploy"}
    gpus = [service for service in SERVICES.values() if service.get("profiles") == ["gpus"]]
    seen = []
    for service in gpus:
        assert {**ordinary, "profiles": ["gpus"], "deploy": service["deploy"]} == service
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        seen += device["device_ids"]
    assert seen == ["0", "1"]


def test_make_compose_has_a_stand_in_for_all_that_is_not_built() -> None:
    assert set(TAGS) == {name for name, service in SERVICES.items() if "build" not in service}


@pytest.mark.parametrize("name", OURS)
def test_compose_services_are_hardened_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    image = "worker" if name == "worker" else "api"
    assert service["build"]["dockerfile"] == f"docker/{image}.Dockerfile"
    # The image's own check is the API's or the worker's.
    assert ("healthcheck" in service) == (name == "reconciler")


@pytest.mark.parametrize("name", OURS)
def test_the_programs_start_with_what_compose_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    kind: Any = OURS[name]
    settings = kind()
    fields = {*kind.model_fields, *(f"s3_{field}" for field in type(settings.s3).__slots__)}
    # A hub's token is read by the hub's own library, by those who read a hub.
    token = {"HF_TOKEN"} if name in ("api", "worker") else set()
    assert set(environment) & {"HF_TOKEN"} == token
    assert {f"STRUCPRUNE_{field.upper()}" for field in fields} | token >= set(environment)
    assert settings.redis_url.endswith("@valkey:6379/0")


def test_the_key_that_compose_names_is_valid() -> None:
    (key,) = set(re.findall(r"spk_[\w-]+", (DOCKER / "compose.yaml").read_text()))
    settings = Settings.model_validate(
        {
            name.removeprefix("STRUCPRUNE_").lower(): value
            for name, value in SERVICES["api"]["environment"].items()
            if name.startswith("STRUCPRUNE_") and not re.search("API_KEYS|S3|REPOSITORIES", name)
        }
        | {"api_keys": yaml.safe_load(SERVICES["api"]["environment"]["STRUCPRUNE_API_KEYS"])}
    )
    (entry,) = settings.api_keys
    pepper = settings.key_pepper.get_secret_value().encode()
    assert entry.key_hmac == hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


@pytest.mark.services
def test_the_buckets_are_made_and_made_once(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, *command = SERVICES["buckets"]["command"]
    assert python == "python"
    for name, value in {
        "ENDPOINT_URL": s3_server.endpoint_url,
        "REGION": "us-east-1",
        "ACCESS_KEY_ID": s3_server.access_key_id,
        "SECRET_ACCESS_KEY": s3_server.secret_access_key,
    }.items():
        monkeypatch.setenv(f"STRUCPRUNE_S3_{name}", value)
    for _ in range(2):
        subprocess.run([sys.executable, *command], check=True)
    buckets = {bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]}
    assert {"work", "strucprune-state"} <= buckets


def test_a_stopped_worker_has_time_to_give_back_its_job() -> None:
    worker = SERVICES["worker"]
    grace = worker["environment"]["STRUCPRUNE_GRACE_SECONDS"]
    assert int(worker["stop_grace_period"].removesuffix("s")) >= grace + 40
