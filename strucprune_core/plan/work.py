"""What a job reads and computes. No torch.

Operations are those of matrix products and factorisations; a multiplication and an addition are
two. Norms, activations and the scores of attention are left out: they are few, and bound by memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from strucprune_core.method.allocation.energies import PROBE_SPARSITY
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.training.schedule import RECOVERY_BATCH_TOKENS
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import expected_tensors, layer_tensors
from strucprune_core.models.tiles import (
    HOLDOUT_TOKENS,
    MODEL_CHECK_LAYERS,
    VERIFY_SEQUENCES,
    VERIFY_TOKENS,
)
from strucprune_core.plan.graph import Unit, build_graph, distill_units, probe_groups
from strucprune_core.plan.memory.solver import curve_flops, error_flops, gram_flops, ridge_flops
from strucprune_core.plan.sites import energy_of, holdout_sequences, plan_sites, probe_shape
from strucprune_core.spec import JobSpec


def weights_read(spec: JobSpec, config: ModelConfig) -> int:
    """Parameters read from the model's files in the course of a job, a pass counted each time."""
    layers = [
        sum(math.prod(shape) for shape in layer_tensors(config, layer).values())
        for layer in range(config.layers)
    ]
    body = sum(layers)
    ends = sum(math.prod(shape) for shape in expected_tensors(config).values()) - body
    passes = 3.0  # A look at every value, statistics, and assembly of the result.
    partial = 0
    pruning = spec.pruning
    if energy_of(pruning) == "kl_probe":
        # A group of layers sends its runs through all layers behind it.
        partial = sum(sum(layers[group.start :]) for group in probe_groups(config.layers))
    elif energy_of(pruning) == "gradient":
        passes += 1
    if spec.evaluation is not None:
        passes += 1
    passes += 1 if pruning.recover is not None else 0
    passes += 0 if pruning.distill is None else 2 * pruning.distill.steps
    return round(passes * (body + ends)) + partial


def flops(spec: JobSpec, config: ModelConfig, panels: Panels) -> dict[str, int]:
    """Operations of a whole job by purpose, as `unit_flops` names them."""
    units = build_graph(
        layers=config.layers,
        shards=(),  # Writing files computes nothing.
        energy=energy_of(spec.pruning),
        evaluate=spec.evaluation is not None,
        recover=spec.pruning.recover is not None,
        rounds=spec.pruning.rounds,
        distill_steps=0 if spec.pruning.distill is None else spec.pruning.distill.steps,
    )
    found: Counter[str] = Counter()
    for purposes in unit_flops(units, spec, config, panels).values():
        found.update(purposes)
    return dict(found)


def unit_flops(
    units: Iterable[Unit], spec: JobSpec, config: ModelConfig, panels: Panels
) -> dict[str, dict[str, int]]:
    """Operations of units of a job, by the unit's name and by purpose."""
    work = _Work(spec, config, panels)
    return {unit.name: work.of(unit) for unit in units}


def active_weights(config: ModelConfig, layer: int) -> int:
    """Weights of a layer's matrices that one token meets (norms and biases multiply nothing)."""
    block = config.blocks[layer]
    shapes = layer_tensors(config, layer)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    if block.names.router is None:
        return matrices
    # Of the experts a token meets only a few.
    gated = 2 if block.names.gate is not None else 1
    experts = sum(block.ffn_widths) * (gated + 1) * config.hidden_size
    share = config.experts_per_token / len(block.ffn_widths)
    return matrices + round(experts * share) - experts


class _Work:
    """Operations of a job's units."""

    def __init__(self, spec: JobSpec, config: ModelConfig, panels: Panels) -> None:
        self._spec, self._config, self._panels = spec, config, panels
        text = spec.calibration
        self._tokens = text.samples * text.sequence_length
        self._held_out = holdout_sequences(text.samples) * text.sequence_length
        self._train_sequences = text.samples - holdout_sequences(text.samples)
        self._probed = math.prod(probe_shape(text))
        # Per token: one layer, all layers, and the logits.
        self._layers = [2 * active_weights(config, layer) for layer in range(config.layers)]
        self._body = sum(self._layers)
        self._head = 2 * config.vocab_size * config.embedding_size
        self._checked = min(MODEL_CHECK_LAYERS, config.layers)

    @cached_property
    def _sites(self) -> list[list[Site]]:
        found: list[list[Site]] = [[] for _ in self._layers]
        for place in plan_sites(self._config, self._spec.pruning):
            found[place.layer].append(place.site)
        return found

    def of(self, unit: Unit) -> dict[str, int]:
        """By purpose."""
        layer = unit.index
        if unit.kind == "model_check":  # Twice: by ourselves and by transformers.
            tokens = 2 * VERIFY_SEQUENCES * VERIFY_TOKENS
            return {"verification": tokens * (max(self._layers) * self._checked + self._head)}
        if unit.name == "tokens":
            return self._writing()
        if unit.kind == "capture":
            return {"calibration": self._tokens * self._layers[layer], "grams": self._grams(layer)}
        if unit.kind == "curve":
            return {"curves": self._curves(layer)}
        if unit.kind == "probe":
            solves = sum(
                self._ridges(each, PROBE_SPARSITY)
                for each in probe_groups(len(self._layers))[layer]
            )
            return {"probes": self._variants(layer) + solves}
        if unit.kind == "gradient":
            return {"gradients": self._gradient(layer)}
        if unit.kind == "trial":
            return {"trials": self._trial(layer)}
        if unit.kind == "review":
            return {"reviews": self._variants(layer)}
        if unit.kind == "solve":
            return {"solves": self._solve(layer)}
        if unit.kind == "recover":
            return {"recovery": self._recovery(layer)}
        if unit.kind == "distill":
            return {"distillation": self._distillation(layer)}
        if unit.kind == "evaluate" and self._spec.evaluation is not None:
            judged = self._spec.evaluation
            tokens = judged.sequences * judged.sequence_length
            return {"evaluation": tokens * (self._body + self._head)}
        if unit.kind == "verify":  # Twice: by ourselves and by transformers.
            tokens = 2 * VERIFY_SEQUENCES * VERIFY_TOKENS
            return {"verification": tokens * (self._body + self._head)}
        return {}

    def _writing(self) -> dict[str, int]:
        """Text of the model's own: every token once."""
        if self._spec.calibration.source != "self":
            return {}
        return {"writing": self._tokens * (self._body + self._head)}

    def _grams(self, layer: int) -> int:
        train = self._tokens - self._held_out
        return sum(
            gram_flops(_columns(site), self._seen(layer, site, train))
            for site in self._sites[layer]
        )

    def _seen(self, layer: int, site: Site, tokens: int) -> int:
        """Tokens that reach a site: an expert gets its share."""
        block = self._config.blocks[layer]
        if site.kind != "ffn" or block.names.router is None:
            return tokens
        return tokens * self._config.experts_per_token // len(block.ffn_widths)

    def _curves(self, layer: int) -> int:
        d = self._config.hidden_size
        return sum(
            sum(curve_flops(_columns(site), d, self._panels).values())
            for site in self._sites[layer]
        )

    def _ridges(self, layer: int, sparsity: float) -> int:
        d, found = self._config.hidden_size, 0
        for site in self._sites[layer]:
            m = _columns(site)
            found += sum(ridge_flops(m, d, math.ceil((1 - sparsity) * m)).values())
        return found

    def _solve(self, layer: int) -> int:
        """Reconstruction and its judgement, as if every layer lost the same share."""
        sparsity, d = self._spec.pruning.sparsity, self._config.hidden_size
        judged = min(HOLDOUT_TOKENS, self._held_out)
        errors = 0
        for site in self._sites[layer]:
            m, tokens = _columns(site), self._seen(layer, site, judged)
            errors += error_flops(m, d, math.ceil((1 - sparsity) * m), tokens)
        return self._ridges(layer, sparsity) + errors

    def _variants(self, number: int) -> int:
        """Variants of the layers of a group, each from its layer to the model's end."""
        runs, through = 0, 0
        group = probe_groups(len(self._layers))[number]
        for layer in range(group.start, len(self._layers)):
            if layer in group:
                runs += len({site.kind for site in self._sites[layer]})
            through += runs * self._layers[layer]
        # At the end the dense model's logits beside everybody's.
        return self._probed * (through + (runs + 1) * self._head)

    def _trial(self, layer: int) -> int:
        last = layer == len(self._layers) - 1
        passing = self._layers[layer] + (2 * self._head if last else 0)
        return self._ridges(layer, self._spec.pruning.sparsity) + self._probed * passing

    def _gradient(self, number: int) -> int:
        """A layer forth again and back, which is as much as forth: weights have no gradient."""
        group = probe_groups(len(self._layers))[number]
        head = 2 * self._head if group.stop == len(self._layers) else 0
        return self._probed * (2 * sum(self._layers[layer] for layer in group) + head)

    def _recovery(self, layer: int) -> int:
        """Dense and pruned layer over all tokens, and forth and back in each step."""
        recover = self._spec.pruning.recover
        steps = 0 if recover is None else recover.steps
        return (2 * self._tokens + 3 * steps * RECOVERY_BATCH_TOKENS) * self._layers[layer]

    def _distillation(self, number: int) -> int:
        """Forth, forth again and back with gradients of weights: four times forth; the head six."""
        distill = self._spec.pruning.distill
        if distill is None:
            return 0
        steps = len(distill_units(distill.steps)[number])
        sequences = min(distill.batch_sequences, self._train_sequences)
        tokens = steps * sequences * self._spec.calibration.sequence_length
        return tokens * (4 * self._body + 6 * self._head)


def _columns(site: Site) -> int:
    return site.structures * site.columns
