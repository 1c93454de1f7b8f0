"""The checkpoints that runtimes are to load: SmolLM2-135M, pruned in several ways and dense."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runtimes.prunings import PRUNINGS
from strucprune_core import JobSpec, prune
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.export.gguf_file import write_gguf
from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.models.families import parse_config
from strucprune_core.report.document import MANIFEST
from strucprune_core.storage.open import open_store


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all prunings have in common."""

    model: Path
    calibration: Path
    sparsity: float
    samples: int
    sequence_length: int


def ensure_pruned(name: str, recipe: Recipe, root: Path, *, reuse: bool) -> Path:
    """The directory of one of `prunings.PRUNINGS`.

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
            "pruning": {"sparsity": recipe.sparsity, **PRUNINGS[name].settings},
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


def ensure_dense_gguf(model: Path, eight_bits: bool, root: Path, *, reuse: bool) -> Path:
    """The dense model as a GGUF file, written like the export: pruned files are compared with it.

    Args:
        model: A llama's directory.
        eight_bits: In Q8_0, or else in 16 bits.
        root: Folder for checkpoints.
        reuse: Take what is there already.
    """
    path = root / f"{model.name}_{'q8_0' if eight_bits else 'f16'}.gguf"
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
        quantised=eight_bits,
    )
    return path


def quantised(path: Path, kind: str, tools: Path) -> Path:
    """A GGUF file as llama.cpp's own program quantises it.

    Args:
        path: The file, in 16 bits.
        kind: As the program names it: "Q4_K_M".
        tools: The program's folder.

    Raises:
        subprocess.CalledProcessError: it failed; its output has been shown.
    """
    result = path.with_name(f"{path.stem}-{kind}.gguf")
    command = [str(tools / "llama-quantize"), str(path), str(result), kind]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return result


def missing_blocks(directory: Path) -> list[str]:
    """Blocks that some layers of a checkpoint do not have: "attention", "ffn"."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    layers = config.get("strucprune", {}).get("layers", [])
    missing = {
        "attention": any(not layer["query_heads"] for layer in layers),
        "ffn": any(not layer["ffn"] for layer in layers),
    }
    return [name for name, some in missing.items() if some]


def has_fewer_heads(directory: Path, model: Path) -> bool:
    """Whether layers of a checkpoint that have attention have fewer query heads than the model."""
    dense, pruned = (
        parse_config(json.loads((each / "config.json").read_text(encoding="utf-8")))
        for each in (model, directory)
    )
    most = max(block.query_heads for block in dense.blocks)
    return any(0 < block.query_heads < most for block in pruned.blocks)


def weight_bytes(path: Path) -> int:
    """Size of a model's weights: of a GGUF file, or of a directory's safetensors."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
