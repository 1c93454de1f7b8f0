"""Builds both images without Docker, and runs the product with them: `make images`.

Needs root, and Debian's buildah and debootstrap. The Dockerfiles are built as they are, except that
by default their base is a stand-in, made by debootstrap of Debian bookworm with its own Python
3.11 (`--real-base` pulls the real one). Then the API, the reconciler and a worker run from the
images, as their users, each on a read-only root with a writable /tmp, against a real Valkey and S3
server, and prune a tiny model. "Run" means chroot in a mount namespace of its own: there is no
container runtime, so capabilities, seccomp and limits are not what a cluster would set.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from embedded.processes import ManagedProcess, wait_until
from embedded.stack import ROOT, WORK_BUCKET, Stack
from strucprune_core import __version__
from strucprune_core.client import Job
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

STAND_IN = "localhost/strucprune/stand-in-python:3.11"
# As the official image: its interpreter is /usr/local/bin/python.
_STAND_IN_PACKAGES = "ca-certificates,python3,python3-venv"
_APT_CONFIGURATION = """\
APT::Keep-Downloaded-Packages "false";
DPkg::Post-Invoke { "rm -rf /var/cache/apt/archives /var/cache/apt/*.bin"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# Binds what a container would have mounted, makes the rest read-only, and becomes the command.
# $1 root, $2 the directory for /tmp and /scratch, $3 user:group, $4 working directory, then the
# command.
_ENTER = """
set -e
mount --bind "$1" "$1"
mount --bind "$2" "$1/tmp"
test ! -d "$1/scratch" || mount --bind "$2" "$1/scratch"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -o remount,bind,ro "$1"
root=$1; user=$3; directory=$4; shift 4
exec chroot --userspec="$user" --groups= "$root" env -C "$directory" "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, mounted.

    Attributes:
        name: Its tag.
        root: Where its files are.
        config: Its configuration, as Docker writes it.
    """

    name: str
    root: Path
    config: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    def inside(self, command: Sequence[str], tmp: Path) -> list[str]:
        """The command line that runs a command in it, with a directory of the host as /tmp."""
        config = self.config
        arguments = [str(self.root), str(tmp), config["User"], config["WorkingDir"]]
        return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", *arguments, *command]


class ImageStack(Stack):
    """The whole product with API, reconciler and worker from images."""

    def __init__(self, directory: Path, images: dict[str, Image]) -> None:
        super().__init__(directory, settings={"STRUCPRUNE_HEARTBEAT_SECONDS": "1"})
        self._images = images
        self.tmp: dict[str, Path] = {}

    def image(self, name: str) -> Image:
        """What a process of this name runs."""
        return self._images["worker" if name.startswith("worker") else "api"]

    def _module(self, name: str, module: str) -> ManagedProcess:
        image = self.image(name)
        self.tmp[name] = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._directory))
        self.tmp[name].chmod(0o1777)
        command = image.config["Cmd"]
        if module == "api.reconciler":
            command = [*command[:-1], module]
        return ManagedProcess(
            name,
            image.inside([*image.config["Entrypoint"], *command], self.tmp[name]),
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


class Workshop:
    """Where images are made: buildah with storage of its own.

    Args:
        directory: For storage, logs and running processes; created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def command(self, *arguments: str) -> list[str]:
        """A command line of buildah."""
        storage = ["--root", str(self.directory / "storage")]
        storage += ["--runroot", str(self.directory / "run"), "--storage-driver", "vfs"]
        return ["buildah", *storage, *arguments]

    def buildah(self, *arguments: str) -> str:
        """Run buildah; what it printed."""
        done = subprocess.run(
            self.command(*arguments), check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    def make_stand_in(self) -> None:
        """Make the base that stands in for the official image, unless it is there."""
        if STAND_IN in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return
        files = self.directory / "stand-in"
        shutil.rmtree(files, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={_STAND_IN_PACKAGES}"]
        subprocess.run([*command, "bookworm", str(files)], check=True, stdout=subprocess.DEVNULL)
        (files / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        # As the official image does, so that sizes compare.
        (files / "etc/apt/apt.conf.d/docker-clean").write_text(_APT_CONFIGURATION)
        for leftover in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(files / leftover)
            (files / leftover).mkdir()
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(files), "/")
        self.buildah("config", "--env", f"PATH={_PATH}", container)
        self.buildah("commit", "--quiet", "--format", "docker", "--rm", container, STAND_IN)
        shutil.rmtree(files)

    def build(self, name: str, options: Sequence[str]) -> Image:
        """Build `docker/<name>.Dockerfile` and mount the image; ends the program if it fails."""
        tag = f"localhost/strucprune/{name}:{__version__}"
        build = ["bud", "--isolation", "chroot", "--format", "docker", "--tag", tag]
        file = ["--file", f"docker/{name}.Dockerfile", "."]
        # pip and apt talk a lot.
        log = self.directory / f"{name}.log"
        with log.open("w") as output:
            command = self.command(*build, *options, *file)
            done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False)
        if done.returncode:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            sys.exit(f"{name}: not built. The end of {log}:\n{tail}")
        container = self.buildah("from", "--pull-never", tag)
        root = Path(self.buildah("mount", container))
        inspected = json.loads(self.buildah("inspect", "--type", "image", tag))
        return Image(tag, root, inspected["Docker"]["config"])

    def clean(self) -> None:
        """Unmount and forget what was mounted; the images stay."""
        self.buildah("rm", "--all")


def bytes_in(path: Path) -> int:
    """Bytes on disk below a path."""
    done = subprocess.run(
        ["du", "-s", "-x", "--block-size=1", str(path)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


def print_sizes(images: dict[str, Image], base: str) -> None:
    """Sizes on disk, uncompressed, and what makes them."""
    for name, image in images.items():
        whole, packages = bytes_in(image.root), bytes_in(image.root / "opt/venv")
        code = bytes_in(image.root / "app")
        print(
            f"{name}: {whole / 1e6:.0f} MB = packages {packages / 1e6:.0f} + our code "
            f"{code / 1e6:.1f} + base and tini {(whole - packages - code) / 1e6:.0f} ({base})"
        )


def tiny_job(stack: Stack, directory: Path) -> Job:
    """Prune a tiny model through the API; the job once it has ended."""
    s3 = stack.s3.client()
    for path in make_tiny_llama(directory / "model").iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"model/{path.name}")
    # The formats need different libraries in the images.
    text, documents = make_text(), io.BytesIO()
    parquet.write_table(pyarrow.table({"text": text.split("\n\n")}), documents)
    s3.put_object(Bucket=WORK_BUCKET, Key="text.txt", Body=text.encode())
    s3.put_object(Bucket=WORK_BUCKET, Key="text.parquet", Body=documents.getvalue())
    uri = f"s3://{WORK_BUCKET}/text"
    with stack.client() as client:
        job = client.submit(
            {
                "model": {"uri": f"s3://{WORK_BUCKET}/model"},
                "output": {"uri_prefix": f"s3://{WORK_BUCKET}/pruned"},
                "pruning": {"sparsity": 0.3},
                "calibration": {"uri": f"{uri}.parquet", "samples": 16, "sequence_length": 32},
                "evaluation": {"uri": f"{uri}.txt", "sequences": 4, "sequence_length": 32},
                "runtime": {"device": "cpu"},
            }
        )
        return client.wait(job.id)


def run(images: dict[str, Image], parent: Path) -> None:
    """Run the product from the images; ends the program if anything is not as it should be."""
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        stack = ImageStack(Path(directory), images)
        with stack:
            print("the API answers /readyz; its user:", images["api"].config["User"])
            for name in ("api", "worker-0"):
                wait_until(lambda name=name: stack.health(name) == 0, f"{name} is healthy")  # type: ignore[misc]
            print("the images' own health checks pass")
            job = tiny_job(stack, Path(directory))
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
    parser.add_argument("--directory", type=Path, default=ROOT / ".cache" / "images")
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
