"""Builds both images without Docker, and runs the product with them: `make images`.

Needs root, and Debian's buildah and debootstrap. The Dockerfiles are built as they are, but by
default on a stand-in for their base: Debian bookworm by debootstrap, with its own Python 3.11.
`--real-base` pulls the real one. Then the API, the reconciler and a worker run from the images, as
their users, each on a read-only root with a writable /tmp. They use a real Valkey and S3 server,
and prune a tiny model. "Run" means chroot in a mount namespace of its own. There is no container
runtime, so capabilities, seccomp and limits are not those of a cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docker.tiny_job import put_inputs, tiny_job
from docker.workshop import DIRECTORY, STAND_IN, Image, Workshop
from embedded.processes import ManagedProcess, wait_until
from embedded.stack import Stack


class ImageStack(Stack):
    """The whole product with API, reconciler and worker from images."""

    def __init__(self, directory: Path, images: dict[str, Image]) -> None:
        super().__init__(directory, settings={"STRUCPRUNE_HEARTBEAT_SECONDS": "1"})
        self._images = images
        self.tmp: dict[str, Path] = {}

    def image(self, name: str) -> Image:
        """The image that a process of this name runs from."""
        return self._images["worker" if name.startswith("worker") else "api"]

    def _module(self, name: str, module: str, *arguments: str) -> ManagedProcess:
        image = self.image(name)
        self.tmp[name] = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._directory))
        self.tmp[name].chmod(0o1777)
        command = image.config["Cmd"]
        if module == "api.reconciler":
            command = [*command[:-1], module]
        return ManagedProcess(
            name,
            image.inside([*image.config["Entrypoint"], *command, *arguments], self.tmp[name]),
            log_directory=self.log_directory,
            # tini is process 1 in a container; here it is not.
            env={**image.environment, **self.environment, "TINI_SUBREAPER": "1"},
        )

    def health(self, name: str) -> int:
        """Exit status of the image's own health check, beside the running process."""
        image = self.image(name)
        kind, *command = image.config["Healthcheck"]["Test"]
        if kind != "CMD":
            raise ValueError(f"a health check of kind {kind}")
        environment = {**image.environment, **self.environment}
        return subprocess.run(
            image.inside(command, self.tmp[name]), env=environment, check=False
        ).returncode


def bytes_in(path: Path) -> int:
    """Bytes on disk below a path."""
    done = subprocess.run(
        ["du", "-s", "-x", "--block-size=1", str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


def print_sizes(images: dict[str, Image], base: str) -> None:
    """Sizes on disk, uncompressed, by part."""
    for name, image in images.items():
        whole, packages = bytes_in(image.root), bytes_in(image.root / "opt/venv")
        code = bytes_in(image.root / "app")
        print(
            f"{name}: {whole / 1e6:.0f} MB = packages {packages / 1e6:.0f} + our code "
            f"{code / 1e6:.1f} + base and tini {(whole - packages - code) / 1e6:.0f} ({base})"
        )


def run(images: dict[str, Image], parent: Path) -> None:
    """Run the product from the images; ends the program if anything is not as it should be."""
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        stack = ImageStack(Path(directory), images)
        with stack:
            print("the API answers /readyz; its user:", images["api"].config["User"])
            for name in ("api", "worker-0"):
                wait_until(lambda name=name: stack.health(name) == 0, f"{name} is healthy")  # type: ignore[misc]
            print("the images' own health checks pass")
            put_inputs(stack.s3.client(), Path(directory))
            with stack.client() as client:
                job = client.wait(client.submit(tiny_job()).id)
            if job.summary is None:
                sys.exit(f"The tiny job {job.state}: {job.error}")
            print("a tiny job succeeded:", json.dumps(job.summary["parameters"]))
            (stack.tmp["worker-0"] / "strucprune-drain").touch()
            worker = stack.workers[0]
            wait_until(lambda: not worker.running, "the drain file ends the worker")
            print("the drain file ended the worker")


def main() -> None:
    """Build, measure, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real-base", action="store_true", help="pull the base that is pinned")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--volume", action="append", default=[], metavar="HOST:INSIDE:ro")
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    arguments = parser.parse_args()
    needed = ["buildah", *([] if arguments.real_base else ["debootstrap"])]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        sys.exit(f"Not installed: {', '.join(missing)}. On Debian: apt-get install {missing[0]}")
    if os.geteuid() != 0:
        sys.exit("Only root can mount images and enter them: run this as root.")
    workshop = Workshop(arguments.directory.resolve())
    workshop.clean()
    options = [f"--volume={volume}" for volume in arguments.volume]
    options += [f"--build-arg={argument}" for argument in arguments.build_arg]
    base = "the pinned base"
    if not arguments.real_base:
        base = "a STAND-IN by debootstrap, not the pinned base"
        workshop.make_stand_in()
        options += ["--pull-never", f"--build-arg=BASE={STAND_IN}"]
    images = {
        "api": workshop.build("api", options),
        "worker": workshop.build("worker", [*options, f"--build-arg=DEVICE={arguments.device}"]),
    }
    print_sizes(images, base)
    run(images, workshop.directory)
    workshop.clean()
    print(f"Both images work. Their base was {base}.")


if __name__ == "__main__":
    main()
