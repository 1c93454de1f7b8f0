"""Peak bytes on the device, step by step of a job. No torch.

The steps follow one another, so a job's peak is that of its largest one. The formulas are in
`forward`, `vocabulary` and `solver.memory`; here is which step runs what.
"""

from __future__ import annotations

from strucprune_core.models.config import ModelConfig
from strucprune_core.planner.forward import (
    FP32_BYTES,
    Batch,
    forward_bytes,
    layer_bytes,
    micro_batch,
)
from strucprune_core.planner.vocabulary import (
    divergences_bytes,
    embedding_bytes,
    losses_bytes,
)
from strucprune_core.planning import PlannedSite, plan_sites, probe_shape
from strucprune_core.solver.panels import Panels
from strucprune_core.spec import JobSpec
from strucprune_core.tiling import Tiles
from strucprune_core.units import PROBE_GROUP_LAYERS

VOCABULARY_STEPS = frozenset({"embed", "divergence", "losses"})
"""Steps that tiles of the vocabulary decide on."""

SOLVER_STEPS = frozenset({"curve", "reconstruction", "admm"})
"""Steps that panels decide on."""

# Copies of a micro-batch's activations while a layer is run back.
GRAPH_ACTIVATIONS = 3
# Share of a site's structures that a probe or a solve keeps, at most: what it is planned for.
VERIFY_SEQUENCES, VERIFY_TOKENS = 2, 64


def device_terms(
    spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels
) -> dict[str, int]:
    """Bytes on the device by step."""
    places, text = plan_sites(config, spec.pruning), spec.calibration
    calibration = micro_batch(tiles, text.samples, text.sequence_length)
    probe_sequences, probe_tokens = probe_shape(text)
    terms = {
        "embed": embedding_bytes(config, text.samples * text.sequence_length, tiles),
        "capture": _capture(config, places, calibration, tiles),
        "verify": _forward(config, Batch(VERIFY_SEQUENCES, VERIFY_TOKENS), tiles),
    }
    pruning = spec.pruning
    probing = pruning.allocation != "uniform" and pruning.energy == "kl_probe"
    if probing or pruning.rounds > 1:
        kinds = len({place.site.kind for place in places})
        runs = min(PROBE_GROUP_LAYERS, config.layers) * kinds
        together = micro_batch(tiles, runs * probe_sequences, probe_tokens)
        tokens = probe_sequences * probe_tokens
        terms["probe"] = _forward(config, together, tiles) + _pruned_copy(config, places, tiles)
        terms["divergence"] = divergences_bytes(config, tokens, runs, tiles)
    if spec.evaluation is not None:
        judged = spec.evaluation
        batch = micro_batch(tiles, judged.sequences, judged.sequence_length)
        terms["evaluate"] = _forward(config, batch, tiles)
        terms["losses"] = losses_bytes(config, judged.sequences * judged.sequence_length, tiles)
    return terms | _training(spec, config, calibration, tiles)


def _forward(config: ModelConfig, batch: Batch, tiles: Tiles) -> int:
    return max(forward_bytes(config, layer, batch, tiles) for layer in range(config.layers))


def _capture(config: ModelConfig, places: list[PlannedSite], batch: Batch, tiles: Tiles) -> int:
    """A layer with its sites' inputs, or these beside their Gram matrices."""
    worst = 0
    for layer in range(config.layers):
        sites = [place.site for place in places if place.layer == layer]
        columns = [site.structures * site.columns for site in sites]
        running = forward_bytes(config, layer, batch, tiles, record={site.kind for site in sites})
        resident = layer_bytes(config, layer) if tiles.weight_rows is None else 0
        kept = batch.tokens * (config.hidden_size + sum(columns))
        grams = FP32_BYTES * sum(width * width for width in columns)
        scaled = batch.tokens * max(columns, default=0)
        worst = max(worst, grams + running, grams + resident + FP32_BYTES * (kept + scaled))
    return worst


def _pruned_copy(config: ModelConfig, places: list[PlannedSite], tiles: Tiles) -> int:
    """What pruning a resident layer makes of its tensors; in panels it is never there whole."""
    return (
        0
        if tiles.weight_rows is not None
        else max(layer_bytes(config, layer) for layer in {place.layer for place in places})
    )


def _training(spec: JobSpec, config: ModelConfig, batch: Batch, tiles: Tiles) -> dict[str, int]:
    """Recovery, distillation and gradient energies hold whole layers, whatever the tiles."""
    layer = max(layer_bytes(config, number) for number in range(config.layers))
    whole = Tiles(tiles.micro_batch_tokens, None, tiles.vocabulary_rows, tiles.head_tokens)
    activations = _forward(config, batch, whole) - layer
    terms: dict[str, int] = {}
    if spec.pruning.recover is not None:
        # The dense and the pruned layer, trained matrices, gradients, two moments.
        terms["recovery"] = 6 * layer + activations
    if spec.pruning.distill is not None:
        # Matrices, gradients of a micro-batch and of all, two moments; activations that the graph
        # keeps for the way back, and their gradients.
        terms["distillation"] = 5 * layer + GRAPH_ACTIVATIONS * activations
    if spec.pruning.energy == "gradient" and spec.pruning.allocation != "uniform":
        one = Batch(1, probe_shape(spec.calibration)[1])
        terms["gradient"] = layer + GRAPH_ACTIVATIONS * (_forward(config, one, whole) - layer)
    return terms
