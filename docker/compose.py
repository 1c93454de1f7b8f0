"""Starts all of compose.yaml on a Docker engine, and checks that it works: `make compose`.

Needs root, `make images` before it, and dockerd with the compose plugin (Debian: docker.io,
docker-compose 2). No registry is needed. Our images are those that `make images` built last, on the
base that it used. Those of Valkey and the S3 server are stand-ins (`stand_ins.py`). Everything else
comes from the file: commands, variables, users, read-only roots, capabilities, volumes, ports,
health checks, order of start. Compose does not build the images here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3

from docker.engine import Engine, enter_namespaces, in_own_namespaces
from docker.stand_ins import TAGS, make_stand_ins
from docker.tiny_job import put_inputs, tiny_job
from docker.workshop import DIRECTORY, Workshop, own_tag
from embedded.processes import wait_until
from embedded.stack import ROOT
from strucprune_core.client import Job, StrucPruneClient

FILE = ROOT / "docker" / "compose.yaml"
# An image's own health check runs every 30 s, and first after 30 s.
_HEALTH_SECONDS = 300.0
_JOB_SECONDS = 600.0
_BY_SIGKILL = 128 + signal.SIGKILL


class Composition:
    """The services of the file on an engine.

    Args:
        engine: Runs.
        directory: For the file that names the stand-ins.
    """

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        override = directory / "stand-ins.json"
        services = {service: {"image": tag} for service, tag in TAGS.items()}
        override.write_text(json.dumps({"services": services}))
        self._options = ["--ansi", "never", "--progress", "quiet"]
        self._options += ["--file", str(FILE), "--file", str(override)]
        config = self.compose("config", "--format", "json")
        self.services: dict[str, Any] = json.loads(config)["services"]

    def compose(self, *arguments: str) -> str:
        """Run `docker compose`; what it printed."""
        return self.engine.docker("compose", *self._options, *arguments)

    def up(self) -> None:
        """Start all services and wait until all are up, and healthy if they have a health check."""
        seconds = str(int(_HEALTH_SECONDS))
        wait = ["--wait", "--wait-timeout", seconds]
        self.compose("up", "--detach", "--no-build", "--pull", "never", *wait)

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """The engine's description of the containers of one service or of all, ended ones too."""
        ids = self.compose("ps", "--all", "--quiet", *([] if service is None else [service]))
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", *ids.split()))
        return found

    def states(self) -> dict[str, str]:
        """State and health of each container, by its name."""
        return {one["Name"].lstrip("/"): state(one) for one in self.containers()}

    def client(self) -> StrucPruneClient:
        """A client of the published API, with the key that the file's head names."""
        (key,) = set(re.findall(r"spk_[\w-]+", FILE.read_text()))
        return StrucPruneClient("http://127.0.0.1:8000", key)

    def s3(self) -> Any:
        """A client of the published S3 server."""
        settings = self.services["worker"]["environment"]
        return boto3.client(
            "s3",
            endpoint_url="http://127.0.0.1:8333",
            region_name=settings["STRUCPRUNE_S3_REGION"],
            aws_access_key_id=settings["STRUCPRUNE_S3_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["STRUCPRUNE_S3_SECRET_ACCESS_KEY"],
        )


def state(container: dict[str, Any]) -> str:
    """State and health of a container, such as `running, healthy` or `exited, 0`."""
    known = container["State"]
    if known["Status"] == "exited":
        return f"exited, {known['ExitCode']}"
    health = known.get("Health", {}).get("Status", "no health check")
    return f"{known['Status']}, {health}"


def expect(holds: bool, what: str) -> None:
    """Print what holds, or end the program."""
    if not holds:
        sys.exit(f"Not so: {what}")
    print(what)


def succeeded(client: StrucPruneClient, job_id: str) -> Job:
    """The job, once it has succeeded; ends the program if it does not."""
    job = client.wait(job_id, timeout_seconds=_JOB_SECONDS)
    if job.summary is None:
        sys.exit(f"The job {job.state}: {job.error}")
    return job


def kill_the_worker_of(composition: Composition, client: StrucPruneClient, job_id: str) -> str:
    """SIGKILL to the container whose log names the job; its id."""
    names: set[str] = set()

    def taken() -> bool:
        # Such as `worker-1  | 2026-01-01 12:00:00 INFO ...`, after control characters.
        log = composition.compose("logs", "--no-color", "worker")
        names.update(re.findall(rf"(worker-\d+)\s*\|.*{job_id}", log))
        return bool(names)

    wait_until(taken, f"a worker has {job_id}", timeout_seconds=_JOB_SECONDS)
    (name,) = names
    workers = {one["Name"]: one for one in composition.containers("worker")}
    worker = workers[f"/strucprune-{name}"]
    os.kill(worker["State"]["Pid"], signal.SIGKILL)
    expect(not client.get(job_id).ended, f"{name} was killed while it had a job")
    return str(worker["Id"])


def check(composition: Composition, directory: Path) -> None:
    """Start, prune, lose a worker, stop, start again; ends the program if anything is wrong."""
    begun = time.monotonic()
    composition.up()
    print(f"up after {time.monotonic() - begun:.0f} s:", json.dumps(composition.states(), indent=2))
    healthy = [one for one in composition.containers() if state(one) == "running, healthy"]
    # Valkey, API, reconciler, and two workers.
    expect(len(healthy) == 5, "five containers are healthy")
    put_inputs(composition.s3(), directory)
    with composition.client() as client:
        first = succeeded(client, client.submit(tiny_job()).id)
        assert first.summary is not None
        print("a tiny job succeeded:", json.dumps(first.summary["parameters"]))
        files = client.download(first.id, directory / "pruned")
        expect(bool(files), f"{len(files)} files came by the links that the API gives")
        job = client.submit(tiny_job("after-a-kill"))
        killed = kill_the_worker_of(composition, client, job.id)
        attempt = succeeded(client, job.id).attempt
        print(f"its job succeeded all the same, in attempt {attempt}")

    def back() -> bool:
        (worker,) = json.loads(composition.engine.docker("inspect", killed))
        return worker["RestartCount"] == 1 and state(worker) == "running, healthy"

    wait_until(back, "the killed worker is back", timeout_seconds=_HEALTH_SECONDS)
    print("the killed worker was started again and is healthy")
    composition.compose("stop")
    ends = composition.states()
    print("stopped:", json.dumps(ends, indent=2))
    expect(f"exited, {_BY_SIGKILL}" not in ends.values(), "all ended when told to")
    composition.compose("down")
    composition.up()
    with composition.client() as client:
        expect(client.get(first.id).state == "succeeded", "the job is known after down and up")


def load_images(engine: Engine, workshop: Workshop, composition: Composition) -> None:
    """Give the engine the images that the file and the stand-ins name."""
    names = {own_tag(name): composition.services[name]["image"] for name in ("api", "worker")}
    names |= {f"localhost/{tag}": tag for tag in TAGS.values()}
    for tag, name in names.items():
        with tempfile.TemporaryDirectory(dir=workshop.directory) as directory:
            archive = Path(directory) / "image.tar"
            workshop.archive(tag, name, archive)
            engine.docker("load", "--quiet", "--input", str(archive))


def name_s3(directory: Path) -> None:
    """Make the name of the S3 server in links known in this mount namespace, as the file asks."""
    hosts = directory / "hosts"
    hosts.write_text("127.0.0.1 localhost s3\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


def main() -> None:
    """Make an engine, and check the file on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="that of `make images`")
    arguments = parser.parse_args()
    missing = [name for name in ("dockerd", "docker", "buildah") if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"Not installed: {', '.join(missing)}. On Debian: apt-get install docker.io buildah"
        )
    if subprocess.run(["docker", "compose", "version"], check=False).returncode:
        sys.exit("The command `docker` has no `compose`: install Docker's compose plugin.")
    if os.geteuid() != 0:
        sys.exit("Only root can start a Docker engine: run this as root.")
    workshop = Workshop(arguments.directory.resolve())
    if not in_own_namespaces():
        absent = [name for name in ("api", "worker") if not workshop.has(own_tag(name))]
        if absent:
            sys.exit(f"There is no image of {' and '.join(absent)}: `make images` first.")
        make_stand_ins(workshop)
        enter_namespaces("docker.compose")
    with (
        tempfile.TemporaryDirectory(dir=workshop.directory, ignore_cleanup_errors=True) as name,
        Engine(Path(name) / "engine") as engine,
    ):
        name_s3(Path(name))
        composition = Composition(engine, Path(name))
        load_images(engine, workshop, composition)
        try:
            check(composition, Path(name))
        except BaseException:
            print(composition.compose("logs", "--tail", "40"))
            raise
        finally:
            composition.compose("down", "--volumes", "--timeout", "10")
    print("compose.yaml works; Valkey's and the S3 server's images were STAND-INS.")


if __name__ == "__main__":
    main()
