"""Whole jobs on the tiny model: half a second each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from strucprune_core.errors import Stopped, StorageUnavailable
from strucprune_core.pipeline import prune
from strucprune_core.report.document import Report
from strucprune_core.run.layer_updates import LayerSink, ignore_layers
from strucprune_core.run.progress import ProgressSink, StopSignal, ignore_progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Store, Tick, ignore_bytes

T = TypeVar("T")

# The evaluation section of a job whose result may be as bad as it likes.
EASY = {"max_perplexity_ratio": 1e6}
# What may differ between two runs of one job: times, and the digests of what holds them.
REPORTS = ("report.json", "report.html", "strucprune.json")


def tiny_spec(model: Path, text: Path, output: Path, **changes: Any) -> JobSpec:
    """A job; `pruning`, `calibration`, `evaluation`, `runtime` add to or replace the defaults."""
    sections: dict[str, Any] = {
        "model": {"uri": str(model)},
        "output": {"uri_prefix": str(output)},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": str(text), "samples": 8, "sequence_length": 32},
        "evaluation": {"uri": str(text), "sequences": 2, "sequence_length": 32},
    }
    for name, change in changes.items():
        sections[name] = None if change is None else {**sections.get(name, {}), **change}
    return JobSpec.model_validate(sections)


def run(
    spec: JobSpec,
    root: Path,
    *,
    open_store: Callable[[str], Store] = lambda uri: LocalStore(Path(uri)),
    progress: ProgressSink = ignore_progress,
    stop: StopSignal | None = None,
    store: type[LocalStore] = LocalStore,
    layers: LayerSink = ignore_layers,
) -> Report:
    """Prune with the workspace (of the class `store`) and scratch directory under `root`."""
    return prune(
        spec,
        workspace=store(root / "workspace"),
        scratch=root / "scratch",
        open_store=open_store,
        progress=progress,
        stop=stop,
        layers=layers,
    )


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by relative name."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def checkpoint_of(directory: Path) -> dict[str, bytes]:
    """The files that must be the same bytes in every run of a job."""
    return {name: data for name, data in files_of(directory).items() if name not in REPORTS}


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same without the model card, which names the dense model, exports and figures."""
    return {name: data for name, data in files.items() if name != "README.md"}


class StopOnceFinished:
    """A stop signal that fires as soon as a unit of the run under `root` is finished."""

    def __init__(self, root: Path, unit: str) -> None:
        self._manifest = root / "workspace/units" / unit / "manifest.json"

    def check(self) -> None:
        if self._manifest.exists():
            raise Stopped("asked to")


class StopAt:
    """A stop signal that fires at the n-th check (from 1)."""

    def __init__(self, number: int) -> None:
        self.left = number

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped("asked to")


class RemoteStore(LocalStore):
    """A store whose files cannot be opened in place, as in S3."""

    def local_path(self, key: str) -> Path | None:
        return None


class FlakyStore(LocalStore):
    """A store that fails at its n-th write (from 1), before or after it took effect."""

    _left: list[int]
    _after: bool

    def __init__(self, root: Path, fails_at: int, *, after: bool = False) -> None:
        super().__init__(root)
        object.__setattr__(self, "_left", [fails_at])  # the class is frozen
        object.__setattr__(self, "_after", after)

    def put(self, key: str, data: bytes) -> None:
        self._try(lambda: super(FlakyStore, self).put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._try(lambda: super(FlakyStore, self).put_if_absent(key, data))

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        self._try(lambda: super(FlakyStore, self).upload(key, path, tick))

    def _try(self, write: Callable[[], T]) -> T:
        self._left[0] -= 1
        fails = self._left[0] == 0
        if not fails:
            return write()
        if self._after:
            write()
        raise StorageUnavailable("the network went away")
