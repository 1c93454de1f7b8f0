"""The checkpoints that runtimes are to load: SmolLM2-135M, pruned in several ways and dense."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runtimes.cases import TINY_FAMILIES
from strucprune_core import JobSpec, prune
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.export.gguf_file import write_gguf
from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.models.families import parse_config
from strucprune_core.report.document import MANIFEST
from strucprune_core.storage.open import open_store

_HEADS: Mapping[str, Any] = {
    "layout": "per_layer",
    "structures": ["ffn_channels", "kv_groups"],
}
PRUNINGS: Mapping[str, Mapping[str, Any]] = {
    "per_layer": {"layout": "per_layer", "exports": ["gguf", "block_configs"]},
    # Nothing for `block_configs` to fill up.
    "per_layer_256": {"layout": "per_layer", "multiple_of": 256, "exports": ["block_configs"]},
    "uniform": {"layout": "uniform", "exports": ["gguf"]},
    # Layers of different widths and different numbers of heads.
    "per_layer_heads": {**_HEADS, "exports": ["gguf"]},
    **dict.fromkeys(TINY_FAMILIES, _HEADS),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all prunings have in common."""

    model: Path
    calibration: Path
    sparsity: float
    samples: int
    sequence_length: int


def ensure_pruned(name: str, recipe: Recipe, root: Path, *, reuse: bool) -> Path:
    """The directory of one of `PRUNINGS`.

    Args:
        name: Of the pruning.
        recipe: What it shares with the others.
        root: Folder for checkpoints.
        reuse: Take what is there already, whatever recipe and code it was made with.
    """
    output = root / name
    if reuse and (output / MANIFEST).exists():
        return output
    shutil.rmtree(output, ignore_errors=True)
    spec = JobSpec.model_validate(
        {
            "model": {"uri": str(recipe.model)},
            "output": {"uri_prefix": str(output)},
            "pruning": {"sparsity": recipe.sparsity, **PRUNINGS[name]},
            "calibration": {
                "uri": str(recipe.calibration),
                "samples": recipe.samples,
                "sequence_length": recipe.sequence_length,
            },
            "runtime": {"device": "cpu"},
        }
    )
    with tempfile.TemporaryDirectory(prefix="strucprune-runtimes-") as folder:
        prune(spec, workspace=open_store(f"{folder}/workspace"), scratch=Path(folder) / "scratch")
    return output


def ensure_dense_gguf(model: Path, root: Path, *, reuse: bool) -> Path:
    """The dense model as a GGUF file, written like the export: pruned files are compared with it.

    Args:
        model: A llama's directory.
        root: Folder for checkpoints.
        reuse: Take what is there already.
    """
    path = root / "dense.gguf"
    if reuse and path.exists():
        return path
    root.mkdir(parents=True, exist_ok=True)
    index = open_checkpoint(open_store(str(model)))
    config = parse_config(index.config)
    vocabulary = read_vocabulary(index.store, index.other_files, index.config, config.vocab_size)
    write_gguf(
        path,
        config,
        TensorReader(index),
        lambda name: index.tensors[name].dtype,
        vocabulary,
        model.name,
        lambda done, total: None,
    )
    return path


def weight_bytes(path: Path) -> int:
    """Size of a model's weights: of a GGUF file, or of a directory's safetensors."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
