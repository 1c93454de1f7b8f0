"""Ways in which the files of a model can be wrong: each spoils a copy of a good checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WEIGHTS = "model.safetensors"
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Breakage:
    """How to spoil a checkpoint, and the failure that must come of it.

    Attributes:
        spoil: Changes the files in a directory.
        code: Code of the error.
        words: Regular expression that its message matches.
    """

    spoil: Callable[[Path], None]
    code: str
    words: str


def broken_copy(model: Path, directory: Path, breakage: Breakage) -> Path:
    """A copy of a model that is broken; the directory it lies in."""
    shutil.copytree(model, directory)
    breakage.spoil(directory)
    return directory


def _remove_weights(model: Path) -> None:
    (model / _WEIGHTS).unlink()


def _pickle(model: Path) -> None:
    (model / _WEIGHTS).rename(model / "pytorch_model.bin")


def _cut_data(model: Path) -> None:
    _write(model, _read(model)[:-5])


def _cut_header(model: Path) -> None:
    _write(model, _read(model)[:100])


def _lengthen_header(model: Path) -> None:
    _write(model, (2**40).to_bytes(_LENGTH_BYTES, "little") + _read(model)[_LENGTH_BYTES:])


def _pad(model: Path) -> None:
    _write(model, _read(model) + b"more")


def _misplace_tensor(model: Path) -> None:
    def swap(header: dict[str, Any]) -> None:
        # Two tensors of one size claim the same place, so that another is claimed by none.
        first, second = (header[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(2))
        second["data_offsets"] = first["data_offsets"]

    _edit_header(model, swap)


def _inflate_tensor(model: Path) -> None:
    def inflate(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["shape"] = [2**40]

    _edit_header(model, inflate)


def _lead_index_outside(model: Path) -> None:
    (model / _WEIGHTS).rename(model.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _lose_shard(model: Path) -> None:
    _remove_weights(model)
    name = "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _set_config(**changes: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **changes}))

    return spoil


def _read(model: Path) -> bytes:
    return (model / _WEIGHTS).read_bytes()


def _write(model: Path, data: bytes) -> None:
    (model / _WEIGHTS).write_bytes(data)


def _edit_header(model: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = _read(model)
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:end])
    edit(header)
    text = json.dumps(header).encode()
    _write(model, len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[end:])


BREAKAGES = {
    "no weights": Breakage(_remove_weights, "invalid_checkpoint", "neither"),
    "pickled weights": Breakage(_pickle, "invalid_checkpoint", "pickled"),
    "missing shard": Breakage(_lose_shard, "invalid_checkpoint", "00001.* is missing"),
    "truncated data": Breakage(_cut_data, "invalid_checkpoint", "truncated"),
    "truncated header": Breakage(_cut_header, "invalid_checkpoint", "truncated"),
    "lying header length": Breakage(_lengthen_header, "invalid_checkpoint", "claims a header"),
    "data that no header describes": Breakage(_pad, "invalid_checkpoint", "too long"),
    "tensors in one place": Breakage(_misplace_tensor, "invalid_checkpoint", "overlaps"),
    "a lying shape": Breakage(_inflate_tensor, "invalid_checkpoint", "model.norm.weight"),
    "index that leads outside": Breakage(_lead_index_outside, "invalid_checkpoint", "unsafe"),
    "config of other widths": Breakage(
        _set_config(intermediate_size=191), "invalid_checkpoint", "has shape"
    ),
    "unsupported architecture": Breakage(
        _set_config(model_type="mamba"), "unsupported_architecture", "mamba"
    ),
}
