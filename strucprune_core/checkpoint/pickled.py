"""Pickled checkpoints (`pytorch_model.bin`), which only `strucprune convert` reads.

A pickle is a program. torch's restricted unpickler (`weights_only`) lets it make tensors and plain
containers only; a file that asks for more is refused. Files are mapped, not read: a tensor takes
memory only while it is used.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.checkpoint.index import MAX_INDEX_BYTES
from strucprune_core.checkpoint.reader import TORCH_DTYPES
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.store import Readable

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.bin")
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_UNPICKLER_PREFIX = "WeightsUnpickler error: "
_MAX_INDEX_DEPTH = 4
_MAX_NAME_LENGTH = 512
# Files open at a time. The format before torch 1.6 cannot be mapped: such a file lies in memory.
_OPEN_FILES = 2
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_name(tensor: Tensor) -> str:
    """The safetensors name of a tensor's dtype (`load_pickled` refuses others)."""
    return _DTYPE_NAMES[tensor.dtype]


def pickled_files(store: Readable) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The files of a pickled checkpoint, and which file holds which tensor if an index says so.

    Raises:
        InvalidCheckpoint: there is none, a file is missing, or the index is malformed.
        StorageError: the store refused or failed.
    """
    if store.stat(PICKLED_FILE) is not None:
        return (PICKLED_FILE,), None
    info = store.stat(PICKLED_INDEX)
    if info is None:
        raise InvalidCheckpoint(
            f"there is neither {PICKLED_FILE} nor {PICKLED_INDEX} under {store.uri}",
            remedy="Use a model in the layout of transformers, saved by save_pretrained.",
        )
    if info.size_bytes > MAX_INDEX_BYTES:
        raise InvalidCheckpoint(
            f"{PICKLED_INDEX} is larger than {MAX_INDEX_BYTES} bytes",
            remedy="No model has such a large one: check what it is.",
        )
    data = bytes(store.read(PICKLED_INDEX, 0, info.size_bytes))
    weight_map = parse_object(data, PICKLED_INDEX, max_depth=_MAX_INDEX_DEPTH).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidCheckpoint(f"{PICKLED_INDEX} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise InvalidCheckpoint(
                f"{PICKLED_INDEX} names the file {shown(name)}, which is unsafe"
            )
    files = tuple(sorted(set(weight_map.values())))
    for name in files:
        if store.stat(name) is None:
            raise InvalidCheckpoint(
                f"the shard {name} is missing", remedy="Copy the missing file next to the others."
            )
    return files, weight_map


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, mapped where the format allows it.

    Raises:
        InvalidCheckpoint: it is damaged, asks for more than tensors, or is not a state dict.
    """
    state = _unpickled(path)
    if not isinstance(state, Mapping):
        raise _no_state_dict(path, f"it holds {shown(type(state).__name__)}")
    for name, tensor in state.items():
        _check_entry(path, name, tensor)
    return {name: tensor.detach() for name, tensor in state.items()}


class PickledTensors:
    """Reads tensors of a pickled checkpoint by file and name, few files open at a time."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def of(self, file: str) -> dict[str, Tensor]:
        """All tensors of a file by name.

        Raises:
            InvalidCheckpoint: as `load_pickled`.
        """
        if file not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)
            self._open[file] = load_pickled(self._paths[file])
        self._open.move_to_end(file)
        return self._open[file]


def _unpickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About old formats, which are here to be converted.
            mapped = _is_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # Damaged and hostile files raise anything.
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused:
            raise InvalidCheckpoint(
                f"{path.name} wants to run {shown(refused[1])} while it is read, which is refused: "
                f"a checkpoint needs tensors only",
                remedy="Where you trust that file, load the model and save it again with "
                "save_pretrained, which writes safetensors.",
            ) from error
        raise InvalidCheckpoint(
            f"{path.name} cannot be read: {shown(_reason(error), 200)}",
            remedy="Copy the file again; if it is whole, save the model with save_pretrained.",
        ) from error


def _reason(error: Exception) -> str:
    """The reason of the error, without torch's advice to lift the restriction."""
    text = str(error).strip()
    if "Weights only load failed" in text:
        text = text.partition(_UNPICKLER_PREFIX)[2].strip() or "it is not a torch file"
    return text.partition("\n")[0] or type(error).__name__


def _is_zip(path: Path) -> bool:
    """Whether it has the format that torch writes since 1.6, which can be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_entry(path: Path, name: object, tensor: object) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise _no_state_dict(
            path, f"under {shown(name)} it holds {shown(type(tensor).__name__)}, not a tensor"
        )
    what = f"tensor {shown(name)} in {path.name}"
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidCheckpoint(f"{what} has an empty, overlong or unprintable name")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise InvalidCheckpoint(
            f"{what} is sparse, quantised or has no data",
            remedy="Save the model with plain tensors.",
        )
    if tensor.dtype not in _DTYPE_NAMES:
        raise InvalidCheckpoint(
            f"{what} has the dtype {tensor.dtype}, which safetensors lacks",
            remedy="Save the model with floating-point tensors.",
        )
    # A view may repeat a few bytes any number of times: written out, it would fill any disk.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidCheckpoint(f"{what} claims more elements than the file holds")


def _no_state_dict(path: Path, reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{path.name} is not a state dict: {reason}",
        remedy="Save the model with save_pretrained, or torch.save(model.state_dict(), ...).",
    )
