"""The check of the dense model: compares our forward pass on the user's files with transformers'.

All that a job measures, and the pruned checkpoint's own check, depend on how we read the dense
model. A key of config.json that we overlook, or a tensor that we ignore, would be wrong on both
sides there. So before any other work transformers builds the model from the user's own config.json,
and random tokens pass through its modules and ours:

- the names of all tensors, of every layer, are compared with those that transformers expects;
- embeddings (with positions, scale and projections) are compared at the first layer's input;
- the first layer, the last, and one layer of each further kind (other modules, window, rotary
  positions or settings, in our reading or in transformers') run in both, on the same input;
- final norm, head and soft cap are compared by the logits, from the last layer's output.

The other layers are left out, which saves a pass over the weights. The text is short: a window or a
stretch of rotary positions that begins beyond its end is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.errors import Mend, NumericalFailure, UnsupportedArchitecture
from strucprune_core.models.config import LayerConfig
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tiles import MODEL_CHECK_LAYERS
from strucprune_core.models.vocabulary import embed, next_token_logits

FIELD = "model.uri"

# Largest difference that float32 rounding explains in a well-conditioned comparison, relative to
# the largest value that a layer adds (seen: 7e-7).
TOLERANCE = 1e-5
# Rounding of the sum with the residual stream, relative to the largest value in it.
SUM_ROUNDING = 1e-6
# How much a layer magnifies rounding is measured by our own pass on an input changed by a few units
# in the last place: attention with large logits magnifies them a thousandfold.
NUDGE = 2.0**-21
NUDGE_FACTOR = 4.0
# Largest difference that operands of 8 bits explain, relative to the largest value that a layer
# adds. It finds layers that do not bear rounding, not single bits.
BFLOAT16_TOLERANCE = 0.1
# After rounding, a router near a tie may choose another expert: this share of tokens may differ.
REROUTED_SHARE = 1 / 32
REROUTED_SHARE_IN_BFLOAT16 = 1 / 4


@torch.inference_mode()
def check_model(
    stream: ModelStream,
    config_json: bytes,
    tensor_names: set[str],
    seed: int,
    tick: Callable[[], None],
    *,
    sequences: int,
    length: int,
    computing: ModelStream | None = None,
) -> dict[str, Any]:
    """Compare our forward on a model's own files with transformers' on the same.

    Args:
        stream: The dense model, in float32.
        config_json: Its config.json.
        tensor_names: Names of all its tensors.
        seed: Of the random tokens.
        tick: Called after each layer: a safe point to stop at.
        sequences: Sequences of tokens.
        length: Tokens of each.
        computing: The model in the precision that the job computes in.

    Returns:
        `reference`, `tokens`, `layers` (those that ran), `max_relative_difference` and `tolerance`.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than there are.
        UnsupportedArchitecture: transformers and this build compute different values from them.
        NumericalFailure: transformers' values are not finite.
    """
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.evaluation.transformers_reference import REFERENCE, Reference

    tokens = random_tokens(seed, stream.config.vocab_size, (sequences, length))
    reference = Reference(stream, config_json, tensor_names)
    layers = layers_to_run(list(zip(_kinds(stream), reference.kinds(), strict=True)))
    run = reference.run(tokens, layers)
    tick()
    compare = Comparison(REFERENCE)
    first, last = run.inputs[layers[0]], run.outputs[layers[-1]]
    embedded = np.empty_like(first)
    embed(stream, tokens, embedded, tick)
    compare("the embeddings", embedded, embedded, first, largest(first))
    for layer in layers:
        given, wanted = run.inputs[layer], run.outputs[layer]
        scale = largest(wanted - given) + largest(wanted) * (SUM_ROUNDING / TOLERANCE)
        routed = stream.config.blocks[layer].names.router is not None
        mine, nudged = _layer_outputs(stream, layer, given)
        compare(f"layer {layer}", mine, nudged, wanted, scale, layer=layer, routed=routed)
        if computing is not None:
            check_rounding(computing, layer, given, mine, scale, routed=routed)
        tick()
    logits = run.logits.numpy()
    mine, nudged = (
        next_token_logits(stream, hidden).numpy()
        for hidden in (last[:, -1], nudged_values(last)[:, -1])
    )
    compare("the logits (final norm and head)", mine, nudged, logits, largest(logits))
    return {
        "reference": REFERENCE,
        "tokens": int(tokens.size),
        "layers": layers,
        "max_relative_difference": compare.difference,
        "tolerance": compare.tolerance,
    }


def layers_to_run(kinds: Sequence[object]) -> list[int]:
    """The first layer, the last, and the first of each further kind while there is room."""
    chosen, seen = {0, len(kinds) - 1}, [kinds[0], kinds[-1]]
    for layer, kind in enumerate(kinds):
        if len(chosen) < MODEL_CHECK_LAYERS and kind not in seen:
            chosen.add(layer)
            seen.append(kind)
    return sorted(chosen)


def _kinds(stream: ModelStream) -> list[object]:
    """What makes the kind of each layer in our reading: all but its widths."""

    def kind(block: LayerConfig) -> object:
        return block.names, block.window, block.rope

    return [kind(block) for block in stream.config.blocks]


def _layer_outputs(
    stream: ModelStream, layer: int, given: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A layer's outputs for an input, and for the input nudged."""
    weights = stream.layer(layer)

    def output(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = stream.to_host(
            stream.run_layer(layer, weights, hidden).hidden
        )
        return result

    return output(given), output(nudged_values(given))


def check_rounding(
    computing: ModelStream,
    layer: int,
    given: NDArray[np.float32],
    exact: NDArray[np.float32],
    scale: float,
    *,
    routed: bool,
) -> None:
    """Check that a layer bears the precision that the job computes in.

    Args:
        computing: The model in that precision; nothing is checked in float32.
        layer: Which layer.
        given: Its input, (b x n x d).
        exact: Its output in float32.
        scale: Differences are relative to it.
        routed: Whether rounding may change a token's expert.

    Raises:
        UnsupportedArchitecture: its outputs differ by more than rounding of operands.
    """
    if computing.dtype == torch.float32:
        return
    found = computing.run_layer(layer, computing.layer(layer), given).hidden.cpu().numpy()
    differences = np.sort(np.abs(found - exact).max(-1).flatten())
    differences /= max(scale, np.finfo(np.float32).tiny)
    left_out = int(len(differences) * REROUTED_SHARE_IN_BFLOAT16) if routed else 0
    difference = float(differences[-1 - left_out])
    if not difference <= BFLOAT16_TOLERANCE:  # `not <=`, so that NaN fails too.
        raise UnsupportedArchitecture(
            f"layer {layer} does not bear bfloat16: the relative difference to float32 is "
            f"{difference:.3g} (tolerance {BFLOAT16_TOLERANCE:g})",
            field="runtime.precision",
            layer=layer,
            remedy="Use precision float32 or tf32.",
            mends=[Mend("runtime.precision", "float32")],
        )


def nudged_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values changed by a few units in the last place, up and down at random."""
    signs = np.random.Generator(np.random.PCG64(0)).choice([-1.0, 1.0], values.shape)
    changed: NDArray[np.float32] = (values * (1.0 + NUDGE * signs)).astype(np.float32)
    return changed


class Comparison:
    """Compares values, and keeps the difference that is nearest to its tolerance."""

    def __init__(self, reference: str) -> None:
        self.difference, self.tolerance = 0.0, TOLERANCE
        self._reference = reference

    def __call__(
        self,
        what: str,
        mine: NDArray[np.float32],
        nudged: NDArray[np.float32],
        wanted: NDArray[np.float32],
        scale: float,
        *,
        layer: int | None = None,
        routed: bool = False,
    ) -> None:
        """Compare values, (... x width), token by token, relative to `scale`.

        Args:
            what: Their name.
            mine: Ours.
            nudged: Ours for a nudged input, or the same where nothing is computed.
            wanted: The reference's.
            scale: Differences are relative to it.
            layer: The layer that they come from.
            routed: Whether rounding may change a token's expert.
        """
        if not np.isfinite(wanted).all():
            raise NumericalFailure(
                f"{self._reference} computes values that are not finite in {what} of the model "
                "itself",
                field=FIELD,
                layer=layer,
                remedy="The checkpoint is damaged, or its values are too large for float32.",
            )
        difference = token_difference(mine, wanted, scale, routed=routed)
        noise = token_difference(nudged, mine, scale, routed=routed)
        tolerance = TOLERANCE + NUDGE_FACTOR * noise
        if not difference <= tolerance:  # `not <=`, so that NaN fails too.
            raise UnsupportedArchitecture(
                f"{self._reference} and this build compute different values for {what} of the "
                f"model: the relative difference is {difference:.3g} (tolerance {tolerance:.3g})",
                field=FIELD,
                layer=layer,
                remedy="Please report this with its config.json: it asks for something that this "
                "build does not implement.",
            )
        if difference * self.tolerance > self.difference * tolerance:
            self.difference, self.tolerance = difference, tolerance


def token_difference(
    mine: NDArray[np.float32], wanted: NDArray[np.float32], scale: float, *, routed: bool
) -> float:
    """The largest difference of a token; with a router, a share of the tokens is left out."""
    differences = np.abs(mine - wanted).max(-1).flatten() / max(scale, np.finfo(np.float32).tiny)
    allowed = int(len(differences) * REROUTED_SHARE) if routed else 0
    return float(np.sort(differences)[-1 - allowed])


def largest(values: NDArray[np.float32]) -> float:
    """The largest magnitude."""
    return float(np.abs(values).max())


def random_tokens(seed: int, vocabulary: int, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Token ids, each as likely as every other."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.integers(0, vocabulary, shape, dtype=np.int32)
