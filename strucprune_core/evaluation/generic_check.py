"""Checks of a generic model: its files against transformers' modules, and channels against zeros.

The forward pass of a generic model is transformers' own, run a layer at a time. What can go wrong
is that a tensor of the files has no place in the modules, that a layer depends on more than the
hidden states that are stored between layers, or that taking channels out is more than setting them
to zero. All three are tried on the user's own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture, naming_field
from strucprune_core.evaluation.experts_check import ExpertsCheck
from strucprune_core.evaluation.model_check import (
    FIELD,
    Comparison,
    check_rounding,
    largest,
    layers_to_run,
    nudged_values,
    random_tokens,
)
from strucprune_core.models.generic.layer_tensors import with_tensors
from strucprune_core.models.generic.meta_parameters import skeleton
from strucprune_core.models.generic.modules import Modules, WholePass
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.pruned_weights import SiteSolution, cut_tensor, cut_tensors
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import Site, sites
from strucprune_core.models.tensors import expected_tensors, tensor_name
from strucprune_core.models.vocabulary import Head

# Largest difference between channels cut out and set to zero that rounding explains, relative to
# the layer's largest output (seen: 3e-7).
CUT_TOLERANCE = 1e-5


@torch.inference_mode()
def check_generic_model(
    stream: ModelStream,
    seed: int,
    tick: Callable[[], None],
    *,
    sequences: int,
    length: int,
    removing: ExpertsCheck | None = None,
    computing: ModelStream | None = None,
) -> dict[str, Any]:
    """Check that a generic model's files fit transformers' modules, and that layers can be cut.

    Args:
        stream: The dense model, in float32.
        seed: Of the random tokens.
        tick: Called after each layer: a safe point to stop at.
        sequences: Sequences of tokens.
        length: Tokens of each.
        removing: Of a job that removes experts: tries that. Without it, channels are cut.
        computing: The model in the precision that the job computes in.

    Returns:
        As `model_check.check_model`.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than there are.
        UnsupportedArchitecture: a layer depends on more than its hidden states, or channels that
            are cut out are not the same as channels that are zero.
        NumericalFailure: what the model computes is not finite.
    """
    from strucprune_core.evaluation.transformers_reference import REFERENCE

    modules = modules_of(stream)
    with naming_field(FIELD):
        check_parameters(modules, stream, REFERENCE)
    tokens = random_tokens(seed, stream.config.vocab_size, (sequences, length))
    layers = layers_to_run(
        [
            (kind, tuple(each.name for each in generic.feed_forwards), generic.experts)
            if generic
            else (kind,)
            for kind, generic in zip(
                modules.kinds(), (block.generic for block in stream.config.blocks), strict=True
            )
        ]
    )
    try:
        _, whole = run_whole(modules, stream, tokens, layers)
    except torch.OutOfMemoryError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # Sizes that fit their tensors need not fit each other.
        raise InvalidCheckpoint(
            f"{REFERENCE} cannot run the model: {type(error).__name__}: {error}",
            field=FIELD,
            remedy="Correct config.json, or give the one that was saved with these weights.",
        ) from error
    tick()
    compare = Comparison(REFERENCE)
    for layer in whole.inputs:  # Some layers do not run on text alone.
        given = whole.inputs[layer].cpu().numpy()
        wanted = whole.outputs[layer].cpu().numpy()
        weights = stream.layer(layer)
        mine, nudged = (
            stream.to_host(stream.run_layer(layer, weights, hidden).hidden)
            for hidden in (given, nudged_values(given))
        )
        compare(f"layer {layer}", mine, nudged, wanted, largest(wanted), layer=layer, routed=True)
        if removing is None:
            _check_cut(stream, layer, weights, given)
        else:
            removing(layer, given)
        del weights
        if computing is not None:
            check_rounding(computing, layer, given, mine, largest(wanted), routed=True)
        tick()
    return {
        "reference": REFERENCE,
        "tokens": int(tokens.size),
        "layers": layers,
        "max_relative_difference": compare.difference,
        "tolerance": compare.tolerance,
    }


def _check_cut(
    stream: ModelStream, layer: int, weights: LayerWeights, given: NDArray[np.float32]
) -> None:
    """Check that a layer without some channels is the layer with these set to zero."""
    cut, zeroed = cut_and_zeroed(stream, layer, weights, given)
    difference = float(np.abs(cut - zeroed).max()) / max(largest(zeroed), 1e-30)
    if not difference <= CUT_TOLERANCE:  # `not <=`, so that NaN fails too.
        raise UnsupportedArchitecture(
            f"removing FFN channels from layer {layer} is not the same as setting them to zero: "
            f"the relative difference is {difference:.3g} (tolerance {CUT_TOLERANCE:g})",
            field=FIELD,
            layer=layer,
            remedy="config.json asks for a variant of the architecture that cannot be pruned. "
            "Please report it with that file.",
        )


@torch.inference_mode()
def reloaded_logits(
    written: ModelStream, config_json: bytes, tokens: NDArray[np.int32], reference: str
) -> Tensor:
    """Logits of the last positions of token ids, (b x n), as the written files' own class has them.

    Returns:
        (b, V) float32.

    Raises:
        InvalidCheckpoint: the class expects other tensors than were written.
    """
    from strucprune_core.export.loading import built_model

    generic = written.config.generic
    if generic is None:
        raise TypeError("not a generic model")
    raw, config = json.loads(config_json), written.config
    modules = Modules(
        skeleton(lambda: built_model(raw), written.device),
        generic,
        written.tensor,
        {config.names.embedding, config.names.head},
        written.device,
    )
    check_parameters(modules, written, reference)
    met, _ = run_whole(modules, written, tokens)
    head = Head(written)
    last = head.with_ones(met[:, -1])
    return torch.cat([head.capped(last @ rows.T).cpu() for _, rows in head.tiles()], dim=-1)


def modules_of(stream: ModelStream) -> Modules:
    """The modules of a generic model's stream."""
    if stream.modules is None:
        raise TypeError("not a generic model")
    return stream.modules


def check_parameters(modules: Modules, stream: ModelStream, reference: str) -> None:
    """Compare the tensors of the files with the parameters of the modules, by name and shape.

    Raises:
        InvalidCheckpoint: there are others, or of other shapes.
    """
    wanted = modules.shapes() | _pruned_shapes(modules, stream)
    on_meta = {
        name: torch.empty(shape, device="meta")
        for name, shape in expected_tensors(stream.config).items()
        if not modules.is_unseen(name)
    }
    for name in on_meta:
        if modules.names.parameter_of(name)[0] not in wanted:
            raise InvalidCheckpoint(
                f"{reference} expects no tensor '{name}' in this model",
                remedy="Give the config.json that was saved with these weights.",
            )
    given = {name: tuple(t.shape) for name, t in modules.names.parameters(on_meta).items()}
    for name, shape in given.items():
        if wanted[name] != shape:
            raise InvalidCheckpoint(
                f"{reference} expects {name} of shape {wanted[name]}, but the files make it "
                f"{shape}",
                remedy="Give the config.json that was saved with these weights.",
            )
    missing = sorted(set(wanted) - set(given) - modules.not_needed())
    if missing:
        raise InvalidCheckpoint(
            f"{reference} expects the tensor {missing[0]}, which the files do not hold",
            remedy="Copy the model again, or give the config.json that was saved with it.",
        )


def _pruned_shapes(modules: Modules, stream: ModelStream) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters that config.json says were pruned before, by name."""
    generic = stream.config.generic
    section = json.loads(generic.config_json).get("strucprune") if generic is not None else None
    tensors = section.get("tensors") if isinstance(section, dict) else None
    if not isinstance(tensors, dict):
        return {}
    found = {modules.names.parameter_of(name)[0]: shape for name, shape in tensors.items()}
    return {name: tuple(shape) for name, shape in found.items() if isinstance(shape, list)}


def run_whole(
    modules: Modules,
    stream: ModelStream,
    tokens: NDArray[np.int32],
    only: Sequence[int] | None = None,
) -> tuple[Tensor, WholePass]:
    """One plain pass of the modules over token ids, (b x n), with the stream's weights.

    Returns:
        What meets the head's matrix, (b, n, e), and what the layers in `only` were given and gave.
    """
    ids, used = np.unique(tokens, return_inverse=True)
    table = torch.empty(len(ids), stream.config.embedding_size, device=stream.device)
    for first, rows in stream.tiles_of(stream.config.names.embedding):
        start, stop = np.searchsorted(ids, (first, first + len(rows)))
        wanted = torch.from_numpy(ids[start:stop].astype(np.int64) - first)
        table[start:stop] = rows[wanted.to(rows.device)]

    def read(layer: int) -> tuple[LayerWeights, str]:
        return stream.layer(layer), tensor_name(stream.config, layer, "")

    whole = WholePass(read, only)
    places = torch.from_numpy(used.reshape(tokens.shape)).to(stream.device)
    given = torch.from_numpy(tokens.astype(np.int64)).to(stream.device)
    return modules.run_whole(places, table, given, whole), whole


def cut_and_zeroed(
    stream: ModelStream, layer: int, weights: LayerWeights, hidden: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A layer's output with every other channel cut out, and with it set to zero, (b x n x d)."""
    zeros: dict[str, Tensor] = {}
    solutions = []
    for site in sites(stream.config, layer, ("ffn_channels",)):
        kept = torch.arange(0, site.structures, 2)
        gone = torch.arange(1, site.structures, 2)
        zeros[site.output.role] = _zeroed(weights[site.output.role], site, gone)
        solutions.append((site, _cut(weights[site.output.role], site, kept)))
    cut = with_tensors(weights, cut_tensors(weights, solutions))
    zeroed = with_tensors(weights, zeros)
    first, second = (
        stream.to_host(stream.run_layer(layer, each, hidden).hidden) for each in (cut, zeroed)
    )
    return first, second


def _zeroed(matrix: Tensor, site: Site, gone: Tensor) -> Tensor:
    indices = torch.tensor(site.output.indices(gone.tolist()), device=matrix.device)
    return matrix.index_fill(site.output.axis, indices, 0.0)


def _cut(matrix: Tensor, site: Site, kept: Tensor) -> SiteSolution:
    left = cut_tensor(matrix, site.output, kept)
    return SiteSolution(kept, left.T if site.output.axis == 0 else left)
