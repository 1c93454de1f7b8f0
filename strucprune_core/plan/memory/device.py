"""Peak bytes on the device, step by step of a job. No torch.

Steps follow one another, so a job's peak is that of its largest step. The formulas are in
`forward`, `vocabulary` and `solver`; this module combines them into steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strucprune_core.method.allocation.energies import PROBE_SPARSITY
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.training.schedule import recovery_sequences
from strucprune_core.models.blocks import BLOCKS_OF
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import experts_of, matrices_bytes
from strucprune_core.models.generic.outside import held_tensors
from strucprune_core.models.structures import Site, SiteKind, sites
from strucprune_core.models.tensors import layer_tensors
from strucprune_core.models.tiles import HOLDOUT_TOKENS, VERIFY_SEQUENCES, VERIFY_TOKENS, Tiles
from strucprune_core.plan.blocks import REMEASURED_BLOCKS, refits
from strucprune_core.plan.graph import PROBE_GROUP_LAYERS
from strucprune_core.plan.memory.forward import (
    FP32_BYTES,
    Batch,
    ahead_bytes,
    distinct_layers,
    forward_bytes,
    layer_bytes,
    micro_batch,
    pass_bytes,
    resident_bytes,
)
from strucprune_core.plan.memory.solver import (
    admm_device_bytes,
    curve_device_bytes,
    error_device_bytes,
    gram_device_bytes,
    ridge_device_bytes,
)
from strucprune_core.plan.memory.vocabulary import (
    divergences_bytes,
    embedding_bytes,
    losses_bytes,
)
from strucprune_core.plan.samples import most_tokens
from strucprune_core.plan.shared_budget import measured_steps
from strucprune_core.plan.sites import (
    PlannedSite,
    energy_of,
    holdout_sequences,
    plan_sites,
    probe_shape,
)
from strucprune_core.plan.task_memory import batch_tokens, context_of
from strucprune_core.spec import JobSpec

VOCABULARY_STEPS = frozenset({"embed", "divergence", "losses"})
"""Steps whose memory depends on tiles of the vocabulary."""

SOLVER_STEPS = frozenset({"curve", "reconstruction", "admm", "refit_solve"})
"""Steps whose memory depends on panels."""

# Copies of a micro-batch's activations while a layer is run back.
GRAPH_ACTIVATIONS = 3
# The same where only its FFN is run back (seen: 1.1).
FFN_GRAPH_ACTIVATIONS = 1.5
# Share of a site's columns that a plan assumes to be kept: more is rare, and takes little more.
KEPT_SHARE = 0.9


_FFN: tuple[SiteKind, ...] = ("ffn",)


def device_terms(
    spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels
) -> dict[str, int]:
    """Bytes on the device by step."""
    held = FP32_BYTES * sum(math.prod(shape) for shape in held_tensors(config).values())
    return {step: held + size for step, size in _terms(spec, config, tiles, panels).items()}


def _terms(spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels) -> dict[str, int]:
    """The same without what transformers' modules hold all the time."""
    places, text = plan_sites(config, spec.pruning), spec.calibration
    calibration = micro_batch(tiles, text.samples, text.sequence_length)
    if spec.pruning.removes_experts_alone:
        return _experts(spec, config, calibration, tiles)
    terms = _solver(spec, config, places, panels)
    terms["embed"] = embedding_bytes(config, text.samples * text.sequence_length, tiles)
    terms["capture"] = _capture(config, places, calibration, tiles, panels)
    if places and (spec.pruning.rounds > 1 or energy_of(spec.pruning) == "kl_probe"):
        terms |= _probes(spec, config, places, tiles, panels)
    if spec.pruning.removes_blocks:
        terms |= _blocks(spec, config, tiles, terms.get("divergence", 0))
    if spec.pruning.removes_experts:
        terms |= _beside_experts(spec, config, tiles, terms.get("divergence", 0))
    if refits(spec.pruning, config):
        terms |= _refit(config, calibration, tiles, panels)
    terms["verify"] = _verify(config, tiles)
    terms |= _evaluation(spec, config, tiles)
    return terms | _training(spec, config, calibration, tiles)


def passing_tokens(spec: JobSpec, config: ModelConfig) -> set[int]:
    """Tokens whose hidden states pass several layers within a unit, of each kind of unit."""
    passing = set()
    if spec.evaluation is not None:
        passing.add(spec.evaluation.sequences * spec.evaluation.sequence_length)
    if energy_of(spec.pruning) == "kl_probe" and not spec.pruning.removes_blocks_alone:
        passing.add(probe_runs(spec, config) * math.prod(probe_shape(spec.calibration)))
    return passing


def probe_runs(spec: JobSpec, config: ModelConfig) -> int:
    """Most variants of layers that are probed side by side."""
    kinds = {
        site.kind
        for layer in distinct_layers(config)
        for site in sites(config, layer, spec.pruning.structures)
    }
    return min(PROBE_GROUP_LAYERS, config.layers) * max(1, len(kinds))


def _by_layer(places: list[PlannedSite]) -> dict[int, list[Site]]:
    found: dict[int, list[Site]] = {}
    for place in places:
        found.setdefault(place.layer, []).append(place.site)
    return found


def _states(config: ModelConfig, tokens: int) -> int:
    """Hidden states."""
    return FP32_BYTES * tokens * config.hidden_size


def _passing(config: ModelConfig, batch: Batch, tiles: Tiles, tokens: int) -> int:
    """Layer after layer over hidden states, which stay on the device if the tiles say so.

    The input of a micro-batch is a part of those that stay.
    """
    running = pass_bytes(config, batch, tiles)
    if tokens > tiles.resident_tokens:
        return running
    return running + _states(config, tokens - batch.tokens)


def _kept(config: ModelConfig, tiles: Tiles, tokens: int) -> int:
    """Hidden states that are on the device while something else is done with them."""
    return 0 if tokens > tiles.resident_tokens else _states(config, tokens)


def _experts(spec: JobSpec, config: ModelConfig, batch: Batch, tiles: Tiles) -> dict[str, int]:
    """The steps of a job that removes experts: nothing is solved."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    sequences, length = probe_shape(spec.calibration)
    runs = probe_runs(spec, config) if energy_of(spec.pruning) == "kl_probe" else 1
    tokens_of_runs = runs * sequences * length
    together = micro_batch(tiles, runs * sequences, length)
    kept = 0 if runs == 1 else _kept(config, tiles, tokens_of_runs)
    # A probed layer beside the dense one.
    beside = _resident(config, tiles)
    probe = (
        {} if runs == 1 else {"probe": beside + _passing(config, together, tiles, tokens_of_runs)}
    )
    if spec.pruning.expert_repair:
        # The dense, the pruned and the repaired layer; for one expert the sums and their factor.
        whole = replace(tiles, expert_by_expert=False, operand_bytes=FP32_BYTES)
        layers = 3 * _resident(config, whole)
        probe["repair"] = layers + _repair_sums(config) + _forward(config, batch, whole)
    route = _forward(config, batch, tiles)
    if tiles.expert_by_expert:  # Where routers avoid experts, the last expert's matrices stay.
        route += _expert_bytes(config, tiles)
    return {
        **probe,
        "embed": embedding_bytes(config, tokens, tiles),
        "route": route,
        "divergence": kept + divergences_bytes(config, sequences * length, runs, tiles),
        "verify": _verify(config, tiles),
        **_evaluation(spec, config, tiles),
    }


def _beside_experts(
    spec: JobSpec, config: ModelConfig, tiles: Tiles, divergence: int
) -> dict[str, int]:
    """Numbers of experts side by side: routers avoid the others. Then the model without them."""
    sequences, length = probe_shape(spec.calibration)
    runs = len(measured_steps(config, spec.pruning))
    probe = pass_bytes(config, micro_batch(tiles, runs * sequences, length), tiles)
    if tiles.expert_by_expert:  # Where routers avoid experts, the last expert's matrices stay.
        probe += _expert_bytes(config, tiles)
    shown = divergences_bytes(config, sequences * length, runs, tiles)
    return {"expert_probe": probe, "divergence": max(divergence, shown)}


def _evaluation(spec: JobSpec, config: ModelConfig, tiles: Tiles) -> dict[str, int]:
    judged = spec.evaluation
    if judged is None:
        return {}
    batch = micro_batch(tiles, judged.sequences, judged.sequence_length)
    tokens = judged.sequences * judged.sequence_length
    kept = _kept(config, tiles, tokens)
    terms = {
        "evaluate": _passing(config, batch, tiles, tokens),
        "losses": kept + losses_bytes(config, tokens, tiles),
    }
    if kept:
        terms["embed_evaluation"] = kept + embedding_bytes(config, tokens, tiles)
    if judged.tasks:
        tokens = batch_tokens(config.hidden_size)
        request = micro_batch(tiles, tokens, context_of(config))
        terms["tasks"] = max(
            pass_bytes(config, request, tiles),
            embedding_bytes(config, tokens, tiles),
            losses_bytes(config, tokens, tiles),
        )
    if judged.samples:
        terms["samples"] = _samples(spec, config, tiles)
    return terms


def _samples(spec: JobSpec, config: ModelConfig, tiles: Tiles) -> int:
    """What all prompts have tokens for at once, then one token of each beside its cache."""
    if config.generic is not None:  # A token at a time is computed in float32.
        tiles = replace(tiles, operand_bytes=FP32_BYTES)
    first, longest = most_tokens(spec)
    sequences = len(spec.sampled_prompts)
    beginning = pass_bytes(config, micro_batch(tiles, sequences, first), tiles)
    heads = max(block.kv_heads for block in config.blocks)
    cached = FP32_BYTES * 2 * heads * config.head_dim * longest * sequences
    step = pass_bytes(config, Batch(sequences, 1), tiles) + cached
    head = losses_bytes(config, sequences, tiles)
    return max(beginning, step, head, embedding_bytes(config, sequences * first, tiles))


def _probes(
    spec: JobSpec,
    config: ModelConfig,
    places: list[PlannedSite],
    tiles: Tiles,
    panels: Panels,
) -> dict[str, int]:
    """Layers that are pruned alone: solved, and run through the rest of the model."""
    sequences, length = probe_shape(spec.calibration)
    runs = probe_runs(spec, config)
    tokens = runs * sequences * length
    together, kept = micro_batch(tiles, runs * sequences, length), _kept(config, tiles, tokens)
    resident = _resident(config, tiles)
    running = _passing(config, together, tiles, tokens)
    running += _pruned_copy(config, places, tiles, panels)
    solving = 0
    for m in {place.site.width for place in places}:
        stay = math.ceil((1 - PROBE_SPARSITY) * m)
        solved = ridge_device_bytes(m, config.hidden_size, stay, panels)
        solving = max(solving, *solved.values())
    return {
        "probe": max(running, kept + resident + ahead_bytes(config, tiles) + solving),
        "divergence": kept + divergences_bytes(config, sequences * length, runs, tiles),
    }


def _blocks(spec: JobSpec, config: ModelConfig, tiles: Tiles, divergence: int) -> dict[str, int]:
    """Models without one block, side by side: those of a group of layers, or of one step."""
    sequences, length = probe_shape(spec.calibration)
    of_layer = sum(kind in BLOCKS_OF for kind in spec.pruning.structures)
    runs = max(min(PROBE_GROUP_LAYERS, config.layers) * of_layer, REMEASURED_BLOCKS)
    together = micro_batch(tiles, runs * sequences, length)
    shown = divergences_bytes(config, sequences * length, runs, tiles)
    return {
        "blocks": pass_bytes(config, together, tiles),
        "divergence": max(divergence, shown),
    }


def _refit(config: ModelConfig, batch: Batch, tiles: Tiles, panels: Panels) -> dict[str, int]:
    """An FFN's inputs and wanted outputs with the sums over them, or the solve; the solve alone."""
    d, worst, alone = config.hidden_size, 0, 0
    for layer in distinct_layers(config):
        block = config.blocks[layer]
        width = 0 if block.names.router is not None else sum(block.ffn_widths)
        if width == 0:
            continue
        sums = gram_device_bytes(width, batch.tokens, panels)
        held = sums["sums"] + sums["panel"]
        held += FP32_BYTES * width * (d if panels.fits(width) else panels.panel)
        running = forward_bytes(config, layer, batch, tiles, record=_FFN)
        adding = sums["scaled_activations"] + FP32_BYTES * batch.tokens * (width + 4 * d)
        if tiles.operand_bytes < FP32_BYTES:  # Inputs as they are recorded, and in float32.
            adding += tiles.operand_bytes * batch.tokens * width
        resident = resident_bytes(config, layer, tiles)
        solving = max(ridge_device_bytes(width, d, width, panels).values())
        worst = max(worst, held + max(running, resident + adding), held + resident + solving)
        alone = max(alone, held + solving)
    return {"refit": worst, "refit_solve": alone}


def _verify(config: ModelConfig, tiles: Tiles) -> int:
    """A few tokens through our layers, and through transformers' one matrix at a time."""
    batch = Batch(VERIFY_SEQUENCES, VERIFY_TOKENS)
    tiles = replace(tiles, operand_bytes=FP32_BYTES)  # It computes in float32.
    if tiles.expert_by_expert:  # The checked layer, and what is made of it.
        return 2 * _resident(config, tiles) + _forward(config, batch, tiles)
    whole = Tiles(batch.tokens, None)
    largest = 0
    for layer in distinct_layers(config):
        shapes = layer_tensors(config, layer)
        matrix = max(math.prod(shape) for shape in shapes.values())
        if config.blocks[layer].names.router is not None:  # Stacked, and joined with each other.
            matrix *= 4 * len(config.blocks[layer].ffn_widths)
        running = forward_bytes(config, layer, batch, whole) - layer_bytes(config, layer)
        largest = max(largest, FP32_BYTES * matrix + running)
    return max(largest, pass_bytes(config, batch, tiles))


def _forward(config: ModelConfig, batch: Batch, tiles: Tiles) -> int:
    return max(forward_bytes(config, layer, batch, tiles) for layer in distinct_layers(config))


def _repair_sums(config: ModelConfig) -> int:
    """Sums over the tokens of one expert, float64; no expert is wider than its tensors."""
    most = 0
    for layer in range(config.layers):
        experts, shapes = experts_of(config, layer), layer_tensors(config, layer)
        if experts is not None:
            names = (*(name.format(0) for name in experts.own), *(n for n, _ in experts.sliced))
            sizes = [shapes[name][-2:] for name in names if len(shapes[name]) >= 2]
            widest = max((min(size) for size in sizes), default=0)
            most = max(most, 8 * (3 * widest * widest + 3 * widest * config.hidden_size))
    return most


def _expert_bytes(config: ModelConfig, tiles: Tiles) -> int:
    """The matrices of one expert, at most."""
    operand = tiles.operand_bytes
    return max(matrices_bytes(config, layer, operand) for layer in distinct_layers(config))


def _resident(config: ModelConfig, tiles: Tiles) -> int:
    """What stays of a layer between micro-batches, at most."""
    return max(resident_bytes(config, layer, tiles) for layer in distinct_layers(config))


def _capture(
    config: ModelConfig, places: list[PlannedSite], batch: Batch, tiles: Tiles, panels: Panels
) -> int:
    """A layer with its sites' inputs, or the inputs with the sums that they are added to."""
    worst, by_layer = 0, _by_layer(places)
    for layer in distinct_layers(config):
        pruned = by_layer.get(layer, [])
        columns = [site.width for site in pruned]
        sums = [gram_device_bytes(width, batch.tokens, panels) for width in columns]
        held = sum(each["sums"] + each["panel"] for each in sums)
        kinds = {site.kind for site in pruned}
        running = forward_bytes(config, layer, batch, tiles, record=kinds)
        resident = resident_bytes(config, layer, tiles)
        kept = FP32_BYTES * batch.tokens * config.hidden_size
        kept += tiles.operand_bytes * batch.tokens * sum(columns)
        adding = resident + kept + max((each["scaled_activations"] for each in sums), default=0)
        worst = max(worst, held + max(running, adding))
    return worst


def _solver(
    spec: JobSpec, config: ModelConfig, places: list[PlannedSite], panels: Panels
) -> dict[str, int]:
    """Damage curves, reconstructions and their held-out errors, at the widest site."""
    d = config.hidden_size
    tokens = min(
        HOLDOUT_TOKENS,
        holdout_sequences(spec.calibration.samples) * spec.calibration.sequence_length,
    )
    curve = reconstruction = admm = 0
    for m, size in {(p.site.width, p.site.columns) for p in places}:
        kept = math.ceil(KEPT_SHARE * m)
        curve = max(curve, *curve_device_bytes(m, d, panels, size).values())
        judged = sum(error_device_bytes(m, d, kept, tokens, panels).values())
        solved = ridge_device_bytes(m, d, kept, panels).values()
        reconstruction = max(reconstruction, judged, *solved)
        admm = max(admm, sum(admm_device_bytes(m, d).values()))
    terms = {"curve": curve, "reconstruction": reconstruction}
    return terms | ({"admm": admm} if spec.pruning.solver == "admm" else {})


def _pruned_copy(
    config: ModelConfig, places: list[PlannedSite], tiles: Tiles, panels: Panels
) -> int:
    """A layer's solutions, and the pruned copy of its tensors where it is resident."""
    worst, by_layer = 0, _by_layer(places)
    for layer in set(distinct_layers(config)) & set(by_layer):
        columns = [site.width for site in by_layer[layer]]
        solved = sum(width for width in columns if panels.fits(width)) * config.hidden_size
        copied = resident_bytes(config, layer, tiles)
        worst = max(worst, copied + FP32_BYTES * solved)
    return round(KEPT_SHARE * worst)


def _training(spec: JobSpec, config: ModelConfig, batch: Batch, tiles: Tiles) -> dict[str, int]:
    """Recovery, distillation and gradient energies hold whole layers, whatever the tiles."""
    layer = max(layer_bytes(config, number) for number in distinct_layers(config))
    whole = Tiles(tiles.micro_batch_tokens, None, tiles.vocabulary_rows, tiles.head_tokens)
    activations = _forward(config, batch, whole) - layer
    if tiles.operand_bytes < FP32_BYTES:  # Matrices in training are float32, and rounded for steps.
        activations += layer * tiles.operand_bytes // FP32_BYTES
    terms: dict[str, int] = {}
    if spec.pruning.recover is not None:
        if config.generic is not None:  # A step runs whole sequences.
            length = spec.calibration.sequence_length
            step = Batch(recovery_sequences(length), length)
            running = _forward(config, step, whole) - layer
            activations = max(activations, round(FFN_GRAPH_ACTIVATIONS * running))
        # The dense and the pruned layer, trained matrices, gradients, two moments.
        terms["recovery"] = 6 * layer + activations
    if spec.pruning.distill is not None:
        # Matrices, gradients of a micro-batch and of all, two moments; activations kept for the
        # backward pass, and their gradients.
        terms["distillation"] = 5 * layer + GRAPH_ACTIVATIONS * activations
    if energy_of(spec.pruning) == "gradient":
        one = Batch(1, probe_shape(spec.calibration)[1])
        held = layer + ahead_bytes(config, tiles)
        terms["gradient"] = held + GRAPH_ACTIVATIONS * (_forward(config, one, whole) - layer)
    return terms
