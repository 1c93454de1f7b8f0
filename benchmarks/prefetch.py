"""Whether a job waits for storage: its time on a slow store, against computing and transfer alone.

    .venv/bin/python -m benchmarks.prefetch [--rounds 3] [--samples 32] [--json FILE]

Prunes a model of random weights whose files, workspace and output lie behind one link. A request
takes 50 ms, and all bytes share the bandwidth. A job without either gives the seconds of computing,
and the bytes. The bandwidth is chosen so that their transfer would take as long. Then the job runs
once as it is, and once with what works ahead turned off: layers that are read ahead, chains that
go on before their unit is stored, units that wait to be stored, blocks that are expected. All runs
must give the same bytes. Prints the seconds, and their ratio to the longer one of computing and
transfer; the result is the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.memory_scaling import raw_config
from benchmarks.output import tell, write_result
from benchmarks.random_model import save_random_model
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.pipeline import prune
from strucprune_core.plan.pieces import Plan, plan_job
from strucprune_core.run import opening, runner
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Tick, ignore_bytes

LATENCY_SECONDS = 0.05
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
}
LENGTH = 256


class Link:
    """What all bytes pass, one after another, each request after a delay of its own.

    Args:
        latency_seconds: The delay.
        bytes_per_second: The bandwidth.
    """

    def __init__(self, latency_seconds: float = 0.0, bytes_per_second: float = 1e18) -> None:
        self._latency, self._rate = latency_seconds, bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.bytes = 0

    def carry(self, size: int) -> None:
        """Wait as long as a request takes that carries so many bytes."""
        with self._lock:
            begins = max(time.monotonic() + self._latency, self._free_at)
            self._free_at = begins + size / self._rate
            self.bytes += size
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


@dataclass(frozen=True)
class FarStore(LocalStore):
    """A directory behind a link."""

    link: Link

    def local_path(self, key: str) -> Path | None:
        """None: nothing is on this machine."""
        return None

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """After the transfer."""
        data = LocalStore.read(self, key, start, length)
        self.link.carry(len(data))
        return data

    def stat(self, key: str) -> Any:
        """After a request."""
        self.link.carry(0)
        return LocalStore.stat(self, key)

    def list(self, prefix: str = "") -> Any:
        """After a request."""
        self.link.carry(0)
        return LocalStore.list(self, prefix)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """After the transfer."""
        LocalStore.download(self, key, path, tick)
        self.link.carry(path.stat().st_size)

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """After the transfer."""
        self.link.carry(path.stat().st_size)
        LocalStore.upload(self, key, path, tick)

    def put(self, key: str, data: bytes) -> None:
        """After the transfer."""
        self.link.carry(len(data))
        LocalStore.put(self, key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """After the transfer."""
        self.link.carry(len(data))
        return LocalStore.put_if_absent(self, key, data)

    def delete(self, key: str) -> None:
        """After a request."""
        self.link.carry(0)
        LocalStore.delete(self, key)


@contextlib.contextmanager
def nothing_ahead() -> Iterator[None]:
    """Inside, units are stored one at a time beside the next one that is due, and that is all."""

    def plan(*arguments: Any) -> Plan:
        made = plan_job(*arguments)
        return replace(made, tiles=replace(made.tiles, layers_ahead=0))

    with (
        mock.patch.object(opening, "plan_job", plan),
        mock.patch.object(runner, "CHAINED_KINDS", frozenset()),
        mock.patch.object(runner, "MOST_WAITING_BYTES", -1),
        mock.patch.object(TensorReader, "expect", return_value=None),
    ):
        yield


def job(model: Path, text: Path, samples: int, link: Link) -> tuple[float, dict[str, bytes]]:
    """Seconds of the job, and the weights that it published."""
    with tempfile.TemporaryDirectory(dir=model.parent) as name:
        root = Path(name)
        spec = JobSpec.model_validate(
            {
                "model": {"uri": str(model)},
                "output": {"uri_prefix": str(root / "out")},
                "pruning": {"sparsity": 0.3},
                "calibration": {
                    "uri": str(text),
                    "samples": samples,
                    "sequence_length": LENGTH,
                    "allow_degenerate": True,
                },
                "runtime": {"device": "cpu"},
            }
        )
        for folder in ("out", "workspace"):
            (root / folder).mkdir()
        began = time.monotonic()
        prune(
            spec,
            workspace=FarStore(root / "workspace", link),
            scratch=root / "scratch",
            open_store=lambda uri: FarStore(Path(uri), link),
        )
        seconds = time.monotonic() - began
        files = sorted((root / "out").glob("*.safetensors"))
        return seconds, {path.name: path.read_bytes() for path in files}


def run(rounds: int, samples: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """All jobs; the result."""
    torch.set_num_threads(1)
    found: list[dict[str, float]] = []
    published: list[dict[str, bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        text = save_random_model(model, {**raw_config("llama-7b"), **SHAPE})
        for round_ in range(rounds):
            free = Link()
            computing, weights = job(model, text, samples, free)
            rate = free.bytes / computing
            with nothing_ahead():
                before, weights_before = job(model, text, samples, Link(LATENCY_SECONDS, rate))
            link = Link(LATENCY_SECONDS, rate)
            after, weights_after = job(model, text, samples, link)
            published += [weights, weights_before, weights_after]
            longer = max(computing, link.bytes / rate)
            found.append(
                {
                    "computing_seconds": computing,
                    "transfer_seconds": link.bytes / rate,
                    "transferred_bytes": link.bytes,
                    "before_seconds": before,
                    "after_seconds": after,
                    "before_ratio": before / longer,
                    "after_ratio": after / longer,
                }
            )
            tell(
                f"round {round_ + 1}: computing {computing:.1f} s, {link.bytes / 1e6:,.0f} MB in "
                f"{link.bytes / rate:.1f} s; before {before:.1f} s ({before / longer:.2f}), "
                f"after {after:.1f} s ({after / longer:.2f})"
            )
    if any(weights != published[0] for weights in published):
        raise RuntimeError("the results differ")
    medians = {
        name: statistics.median(each[name] for each in found)
        for name in ("before_ratio", "after_ratio")
    }
    tell(f"median: before {medians['before_ratio']:.2f}, after {medians['after_ratio']:.2f}")
    return {
        "shape": SHAPE,
        "calibration_tokens": samples * LENGTH,
        "latency_seconds": LATENCY_SECONDS,
        "rounds": found,
        **medians,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefetch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32, help="sequences of 256 tokens")
    parser.add_argument("--json", type=Path, help="where the result goes")
    options = parser.parse_args()

    result = run(options.rounds, options.samples, tell)
    write_result(options.json, result)


if __name__ == "__main__":
    main()
