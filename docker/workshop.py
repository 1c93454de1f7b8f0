"""Makes images without Docker, with buildah, on a stand-in for the official base image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded.stack import ROOT
from strucprune_core import __version__

DIRECTORY = ROOT / ".cache" / "images"
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


def own_tag(name: str) -> str:
    """The tag of the image `api` or `worker`."""
    return f"localhost/strucprune/{name}:{__version__}"


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

    def has(self, tag: str) -> bool:
        """True if an image of this name is there."""
        return tag in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()

    def make_stand_in(self) -> None:
        """Make the base that stands in for the official image, unless it is there."""
        if self.has(STAND_IN):
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

    def bud(self, name: str, options: Sequence[str]) -> None:
        """Build an image, logging to `<name>.log`; ends the program if it fails."""
        # pip and apt print a lot.
        log = self.directory / f"{name}.log"
        with log.open("w") as output:
            command = self.command("bud", "--isolation", "chroot", "--format", "docker", *options)
            done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False)
        if done.returncode:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            sys.exit(f"{name}: not built. The end of {log}:\n{tail}")

    def build(self, name: str, options: Sequence[str]) -> Image:
        """Build `docker/<name>.Dockerfile` and mount the image; ends the program if it fails."""
        tag = own_tag(name)
        self.bud(name, ["--tag", tag, *options, "--file", f"docker/{name}.Dockerfile", "."])
        container = self.buildah("from", "--pull-never", tag)
        root = Path(self.buildah("mount", container))
        inspected = json.loads(self.buildah("inspect", "--type", "image", tag))
        return Image(tag, root, inspected["Docker"]["config"])

    def archive(self, tag: str, name: str, path: Path) -> None:
        """Write an image to a file that `docker load` reads, which will call it `name`."""
        self.buildah("push", "--quiet", tag, f"docker-archive:{path}:{name}")

    def clean(self) -> None:
        """Unmount and forget what was mounted; the images stay."""
        self.buildah("rm", "--all")
