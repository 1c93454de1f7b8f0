"""Which architectures can lose whole layers: found by removing each layer of a tiny model.

    python -m tests.coverage.layers [--only NAME ...]

Writes `layers.json`, which the product reads, and the column of docs/architectures.md. A model
without a layer is what its class makes of a config.json with one layer less. That is the same as
the whole model whose layer hands on what it is given only where nothing else depends on the number
of layers or on a layer's place.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from strucprune_core.export.layer_keys import periods, with_layers
from strucprune_core.export.layouts import vanilla_side_files
from strucprune_core.models.blocks import (
    Block,
    compacted,
    kept_layers,
    names_in_files,
    without_blocks,
)
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.generic import layer_table
from strucprune_core.models.generic.architectures import architecture, generic_model_types
from strucprune_core.models.generic.unseen import towers_may_lack
from strucprune_core.models.renamed_source import RenamedSource
from strucprune_core.models.streaming import ModelStream, WeightSource, open_stream
from strucprune_core.models.tensors import expected_tensors
from tests.coverage.detect import NotPrunable
from tests.coverage.examine import (
    TOLERANCE,
    Tensors,
    described,
    logits_of,
    relative_difference,
    tiny_checkpoint,
    tiny_tokens,
)

_UNKNOWN = "its class does not load every choice of layers"


@torch.inference_mode()
def examine_layers(model_type: str) -> float:
    """Remove each layer of a tiny model; the largest difference of logits, relative.

    Raises:
        NotPrunable: an architecture cannot lose layers.
    """
    found = architecture(model_type)
    if found is None:
        raise NotPrunable("it is not accepted")
    checkpoint = tiny_checkpoint(model_type)
    raw = json.loads(json.dumps({**checkpoint.model.config.to_dict()}))
    found = found.named_as_in(checkpoint.tensors)
    config = described(checkpoint, found, raw)
    section = raw.get("text_config", raw)
    if periods(section):
        raise NotPrunable(f"which layer is of which kind follows from {periods(section)[0]}")
    source = Tensors(checkpoint.tensors)
    stream = open_stream(config, source, torch.device("cpu"))
    return max(_difference(stream, raw, config, source, n) for n in range(config.layers))


def _difference(
    stream: ModelStream, raw: dict[str, Any], config: ModelConfig, source: WeightSource, layer: int
) -> float:
    """How far the reloaded model without a layer is from our stream without it."""
    pruned = without_blocks(config, [Block(layer, "layers")])
    tokens = tiny_tokens()
    wanted = logits_of(open_stream(pruned, source, torch.device("cpu"), like=stream), tokens)
    dense = with_layers(raw, config, kept_layers(pruned))
    names = {new: old for old, new in names_in_files(pruned).items()}
    found = _reloaded(dense, compacted(pruned), RenamedSource(source, names), tokens)
    difference = relative_difference(found, wanted)
    if not difference <= TOLERANCE:
        raise NotPrunable("without one layer, its class computes something else")
    return difference


def _reloaded(
    raw: dict[str, Any], config: ModelConfig, source: WeightSource, tokens: Tensor
) -> Tensor:
    """Logits of the checkpoint without a layer, loaded by transformers' own class."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for name, data in vanilla_side_files(raw, config).items():
            (directory / name).write_bytes(data)
        tensors = {name: source.tensor(name).contiguous() for name in expected_tensors(config)}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        text = raw["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        sees = raw["model_type"] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        whole = sees and ("text_config" in raw or not text)
        auto: Any = AutoModelForImageTextToText if whole else AutoModelForCausalLM
        with torch.inference_mode(mode=False), towers_may_lack():
            model, info = auto.from_pretrained(
                directory, dtype=torch.float32, output_loading_info=True
            )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise NotPrunable("without one layer, its class finds other tensors than it expects")
    found: Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return found


def main(arguments: Sequence[str]) -> int:
    """Examine architectures, and write what was found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage.layers", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, and keep the others")
    only = parser.parse_args(arguments).only
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    refused = {} if only is None else dict(layer_table.refusals())
    for name in only or generic_model_types():
        start = time.perf_counter()
        refused.pop(name, None)
        try:
            note = f"{examine_layers(name):.0e}"
        except NotPrunable as reason:
            refused[name] = str(reason)
            note = f"refused: {reason}"
        except Exception as error:  # Whatever the class of an architecture raises.
            refused[name] = _UNKNOWN
            note = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{name:24} {time.perf_counter() - start:5.1f} s, {note}", flush=True)
    write_table(refused)
    print(f"{len(generic_model_types()) - len(refused)} of {len(generic_model_types())}")
    return 0


def write_table(refused: Mapping[str, str]) -> None:
    """Write the table that the product reads."""
    path = Path(str(layer_table.__file__)).with_name(layer_table.TABLE)
    text = json.dumps({"refused": dict(refused)}, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="strucprune-") as modules:
        os.environ["HF_MODULES_CACHE"] = modules
        sys.exit(main(sys.argv[1:]))
