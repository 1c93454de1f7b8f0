"""One architecture, from a tiny model to a pruned checkpoint that transformers loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from strucprune_core.evaluation.generic_check import CUT_TOLERANCE, check_parameters, cut_and_zeroed
from strucprune_core.export.layouts import side_files
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.generic.architectures import Architecture
from strucprune_core.models.generic.describe import describe
from strucprune_core.models.generic.unseen import towers_may_lack
from strucprune_core.models.pruned_weights import PrunedSource, SiteSolution
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import ModelStream, open_stream
from strucprune_core.models.structures import shrink, sites
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.vocabulary import Head, embed
from tests.coverage.detect import NotPrunable
from tests.coverage.patterns import (
    TinyCheckpoint,
    as_stored,
    find_architecture,
    no_channels,
)
from tests.coverage.tiny import VARIANTS, tiny_config, tiny_model

TOLERANCE = 1e-5
SPARSITY = 0.25
_TOKENS = (2, 16)
_SEARCH_TOKENS = 112


class NotBuilt(Exception):
    """No tiny model could be made; the message is what its class said."""


@dataclass(frozen=True, slots=True)
class Examined:
    """An architecture that can be pruned.

    Attributes:
        architecture: Its entry in the table.
        dense_difference: Largest difference of logits, streamed and by the whole model, relative.
        reload_difference: The same of the pruned model, streamed and loaded by transformers.
    """

    architecture: Architecture
    dense_difference: float
    reload_difference: float


class Tensors(StoredSource):
    """A `WeightSource` of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def stored(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._tensors[name]

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor's first dimension."""
        return self._tensors[name][start:stop]


@torch.inference_mode()
def examine(model_type: str) -> Examined:
    """Find an architecture's channels on a tiny model, prune it, and load the result.

    Raises:
        NotPrunable: it cannot be pruned.
        NotBuilt: its tiny model could not be made.
    """
    return _examined(tiny_checkpoint(model_type))


def tiny_checkpoint(model_type: str) -> TinyCheckpoint:
    """A tiny model of an architecture, as its files hold it.

    Raises:
        NotPrunable: it has no layers, or is none that this build can look at.
        NotBuilt: none could be made.
    """
    problems = []
    for changes in VARIANTS:
        try:
            return _tiny(model_type, changes)
        except NotPrunable:
            raise
        except Exception as error:  # Whatever the classes make of sizes that do not fit together.
            problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    raise NotBuilt(problems[0])


def _tiny(model_type: str, changes: dict[str, Any]) -> TinyCheckpoint:
    with torch.inference_mode(mode=False), torch.no_grad():
        model = tiny_model(tiny_config(model_type, **changes))
        model(input_ids=_tokens((1, 8)), use_cache=False)
        return as_stored(model)


def tiny_tokens() -> Tensor:
    """The tokens that logits are compared on, (sequences x length)."""
    return _tokens(_TOKENS)


def _tokens(shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 100, shape, generator=generator)


def _examined(checkpoint: TinyCheckpoint) -> Examined:
    tokens = tiny_tokens()
    wanted = checkpoint.model(input_ids=tokens, use_cache=False).logits
    found = find_architecture(checkpoint, _tokens((1, _SEARCH_TOKENS)))
    raw = _as_read(checkpoint.model)
    source = Tensors(checkpoint.tensors)
    stream = open_stream(described(checkpoint, found, raw), source, torch.device("cpu"))
    assert stream.modules is not None
    check_parameters(stream.modules, stream, "transformers")
    dense = relative_difference(logits_of(stream, tokens), wanted)
    if not dense <= TOLERANCE:
        raise NotPrunable("its layers depend on more than the hidden states before them")
    architecture = _without_failing(checkpoint, found, raw, stream)
    if not architecture.channels:
        raise NotPrunable(no_channels(checkpoint.model))
    config = described(checkpoint, architecture, raw)
    pruned = _pruned(config, source)
    narrow = open_stream(pruned[0], pruned[1], torch.device("cpu"), like=stream)
    logits = _reloaded(raw, pruned)(input_ids=tokens, use_cache=False).logits
    reloaded = relative_difference(logits, logits_of(narrow, tokens))
    if not reloaded <= TOLERANCE:
        raise NotPrunable("the pruned model computes something else once it is loaded")
    return Examined(architecture, dense, reloaded)


def described(
    checkpoint: TinyCheckpoint, architecture: Architecture, raw: dict[str, Any]
) -> ModelConfig:
    """The tiny model; a head that it has is its head, whatever config.json says."""
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    config = describe(raw, shapes, architecture)
    return replace(config, tie_word_embeddings=architecture.tied)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value (at least 1)."""
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def logits_of(stream: ModelStream, tokens: Tensor) -> Tensor:
    """All logits, (b, n, V), a layer at a time."""
    hidden = _layer_inputs(stream, tokens)[-1]
    head = Head(stream)
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = torch.cat([head.logits(flat, rows) for _, rows in head.tiles()], dim=-1)
    return logits.view(*tokens.shape, -1)


def _without_failing(
    checkpoint: TinyCheckpoint, found: Architecture, raw: dict[str, Any], stream: ModelStream
) -> Architecture:
    """The architecture with those channels alone that can be cut out like zeros."""
    good, inputs = [], _layer_inputs(stream, tiny_tokens())
    for pattern in found.channels:
        config = described(checkpoint, replace(found, channels=(pattern,)), raw)
        one = replace(stream, config=config)
        layers = [
            layer
            for layer, block in enumerate(config.blocks)
            if block.generic is not None and block.generic.feed_forwards
        ]
        if all(_cuts_like_zeros(one, layer, inputs[layer]) for layer in layers):
            good.append(pattern)
    return replace(found, channels=tuple(good))


def _layer_inputs(stream: ModelStream, tokens: Tensor) -> list[NDArray[np.float32]]:
    """What each layer is given, and what the last one puts out, (b, n, d)."""
    hidden = np.empty((*tokens.shape, stream.config.hidden_size), dtype=np.float32)
    embed(stream, tokens.numpy().astype(np.int32), hidden)
    found = [hidden]
    for layer in range(stream.config.layers):
        found.append(stream.run_layer(layer, stream.layer(layer), found[-1]).hidden.numpy())
    return found


def _cuts_like_zeros(stream: ModelStream, layer: int, hidden: NDArray[np.float32]) -> bool:
    try:
        cut, zeroed = cut_and_zeroed(stream, layer, stream.whole_layer(layer), hidden)
    except (RuntimeError, ValueError, IndexError):  # Shapes that do not fit together any more.
        return False
    return bool(np.abs(cut - zeroed).max() <= CUT_TOLERANCE * np.abs(zeroed).max())


def _pruned(config: ModelConfig, source: Tensors) -> tuple[ModelConfig, PrunedSource]:
    """The model without a quarter of its channels, others in each layer, nothing repaired."""
    places = [
        (layer, site)
        for layer in range(config.layers)
        for site in sites(config, layer, ("ffn_channels",))
    ]
    solutions: dict[tuple[int, str], SiteSolution] = {}
    kept: list[dict[str, int]] = [{} for _ in range(config.layers)]
    for number, (layer, site) in enumerate(places):
        left = site.structures - int(SPARSITY * site.structures) - number % 3
        channels = torch.arange(site.structures).roll(number)[:left].sort().values
        name = config.names.layer.format(layer) + site.output.role
        matrix = source.tensor(name).index_select(site.output.axis, channels)
        weight = matrix.T if site.output.axis == 0 else matrix
        solutions[layer, site.name] = SiteSolution(channels, weight)
        kept[layer][site.name] = left
    blocks = [
        shrink(block, widths, ("ffn_channels",))
        for block, widths in zip(config.blocks, kept, strict=True)
    ]
    cut = PrunedSource(source, config, places, lambda layer, site: solutions[layer, site.name])
    return config.with_blocks(blocks), cut


def pruned_model(model: Any, found: Architecture) -> Any:
    """A tiny model without a quarter of its channels, loaded from its files."""
    checkpoint = as_stored(model)
    raw = _as_read(model)
    cut = _pruned(described(checkpoint, found, raw), Tensors(checkpoint.tensors))
    return _reloaded(raw, cut)


def _as_read(model: Any) -> dict[str, Any]:
    """The model's config.json as it is read from a file, where all keys are text."""
    raw: dict[str, Any] = json.loads(json.dumps(model.config.to_dict()))
    return raw


def _reloaded(raw: dict[str, Any], pruned: tuple[ModelConfig, PrunedSource]) -> Any:
    """The pruned checkpoint as transformers' Auto classes load it from its files."""
    config, source = pruned
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for name, data in side_files("per_layer", raw, config).items():
            (directory / name).write_bytes(data)
        tensors = {name: source.tensor(name).contiguous() for name in expected_tensors(config)}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        auto: Any = AutoModelForImageTextToText if "text_config" in raw else AutoModelForCausalLM
        with torch.inference_mode(mode=False), towers_may_lack():
            return auto.from_pretrained(
                directory, trust_remote_code=True, dtype=torch.float32
            ).eval()
