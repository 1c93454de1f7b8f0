"""How many operations a job computes. No torch.

Operations are those of matrix products and factorisations; a multiplication and an addition count
as two. Norms, activations and attention scores are left out: they are few, and bound by memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from strucprune_core.method.allocation.energies import PROBE_SPARSITY
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.training.schedule import RECOVERY_BATCH_TOKENS, recovery_sequences
from strucprune_core.models.blocks import Block
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import experts_of, routing_of
from strucprune_core.models.structures import Site
from strucprune_core.models.tensors import layer_tensors
from strucprune_core.models.tiles import (
    HOLDOUT_TOKENS,
    MODEL_CHECK_LAYERS,
    VERIFY_SEQUENCES,
    VERIFY_TOKENS,
)
from strucprune_core.plan.blocks import REMEASURED_BLOCKS, candidates, most_steps, refits
from strucprune_core.plan.graph import (
    Unit,
    build_experts_graph,
    build_graph,
    distill_units,
    probe_groups,
)
from strucprune_core.plan.memory.solver import curve_flops, error_flops, gram_flops, ridge_flops
from strucprune_core.plan.samples import sampled_tokens
from strucprune_core.plan.search import try_units
from strucprune_core.plan.shared_budget import measured_steps
from strucprune_core.plan.sites import (
    energy_of,
    holdout_sequences,
    probe_shape,
    sites_by_layer,
    tokens_reaching,
)
from strucprune_core.plan.sizes import own_units
from strucprune_core.plan.speed import passed_tokens
from strucprune_core.plan.task_memory import task_tokens
from strucprune_core.spec import JobSpec


def flops(spec: JobSpec, config: ModelConfig, panels: Panels) -> dict[str, int]:
    """Operations of a whole job by purpose, as `unit_flops` names them."""
    counts: Counter[str] = Counter()
    for number, alone in enumerate(spec.by_size().values()):
        units = computing_units(alone, config)
        own = own_units(units) if number else frozenset(unit.name for unit in units)
        for name, purposes in unit_flops(units, alone, config, panels).items():
            if name in own:
                counts.update(purposes)
    if spec.tries:
        one = computing_units(spec, config)
        of_try = unit_flops(try_units(one), spec, config, panels)
        for purposes in of_try.values():
            counts.update({purpose: spec.tries * count for purpose, count in purposes.items()})
    return dict(counts)


def computing_units(spec: JobSpec, config: ModelConfig) -> list[Unit]:
    """The units of a job of one size, as if the result were one file: that is enough to plan."""
    shards = [range(config.layers)]
    if spec.pruning.removes_experts_alone:
        return build_experts_graph(
            layers=config.layers,
            shards=[sorted(shards[0])],
            energy=energy_of(spec.pruning),
            evaluate=spec.evaluation is not None,
            samples=bool(spec.sampled_prompts),
            speed=spec.measures_speed,
            tasks=spec.judges_by_tasks,
            repair=spec.pruning.expert_repair,
        )
    pruning = spec.pruning
    return build_graph(
        layers=config.layers,
        blocks=most_steps(config, pruning) if pruning.removes_blocks else 0,
        sites=not pruning.removes_blocks_alone,
        refit=refits(pruning, config),
        experts=pruning.removes_experts,
        shards=shards,
        energy=energy_of(spec.pruning),
        evaluate=spec.evaluation is not None,
        samples=bool(spec.sampled_prompts),
        speed=spec.measures_speed,
        tasks=spec.judges_by_tasks,
        recover=spec.pruning.recover is not None,
        rounds=spec.pruning.rounds,
        exports=spec.pruning.exports,
        export_shards=dict.fromkeys(spec.pruning.exports, shards),
        distill_steps=0 if spec.pruning.distill is None else spec.pruning.distill.steps,
    )


def unit_flops(
    units: Iterable[Unit], spec: JobSpec, config: ModelConfig, panels: Panels
) -> dict[str, dict[str, int]]:
    """Operations of units of a job, by the unit's name and by purpose."""
    work = _Work(spec, config, panels)
    return {unit.name: work.of(unit) for unit in units}


def active_weights(config: ModelConfig, layer: int) -> int:
    """Weights of a layer's matrices that multiply one token (norms and biases do not count)."""
    block = config.blocks[layer]
    shapes = layer_tensors(config, layer)
    if block.generic is not None and block.generic.experts is not None:
        return _active_of_generic(config, layer)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    if block.names.router is None or "ffn" in block.without:
        return matrices
    # A token passes only a few of the experts.
    gated = 2 if block.names.gate is not None else 1
    experts = sum(block.ffn_widths) * (gated + 1) * config.hidden_size
    share = config.experts_per_token / len(block.ffn_widths)
    return matrices + round(experts * share) - experts


def _active_of_generic(config: ModelConfig, layer: int) -> int:
    """The same of a layer whose experts may be removed."""
    experts, routing = experts_of(config, layer), routing_of(config)
    shapes = dict(layer_tensors(config, layer))
    assert experts is not None  # noqa: S101 - asked for layers with experts alone
    of_experts = sum(
        math.prod(shapes.pop(name.format(number)))
        for name in experts.own
        for number in range(experts.count)
    )
    of_experts += sum(
        math.prod(shapes[name]) for name, _ in experts.sliced if len(shapes[name]) > 2
    )
    rest = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    return rest + of_experts * routing.chosen // experts.count


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
    def _blocks(self) -> list[Block]:
        return candidates(self._config, self._spec.pruning)

    @cached_property
    def _sites(self) -> list[list[Site]]:
        return sites_by_layer(self._config, self._spec.pruning)

    def of(self, unit: Unit) -> dict[str, int]:
        """By purpose."""
        layer = unit.index
        if unit.kind == "model_check":  # Twice: by our forward pass and by transformers'.
            tokens = 2 * VERIFY_SEQUENCES * VERIFY_TOKENS
            return {"verification": tokens * (max(self._layers) * self._checked + self._head)}
        if unit.name == "tokens":
            return self._writing()
        if unit.kind == "capture":
            return {"calibration": self._tokens * self._layers[layer], "grams": self._grams(layer)}
        if unit.kind == "route":
            return {"calibration": self._tokens * self._layers[layer]}
        if unit.kind == "repair":  # Dense, pruned, and its activations and products for repair.
            return {"repairs": 4 * self._tokens * self._layers[layer]}
        if unit.kind == "divergence":
            return {"trials": self._probed * (self._body + 2 * self._head)}
        if unit.kind == "expert_probe":
            runs = len(measured_steps(self._config, self._spec.pruning))
            return {"probes": self._probed * (runs * self._body + (runs + 1) * self._head)}
        if unit.kind == "curve":
            return {"curves": self._curves(layer)}
        if unit.kind == "probe":
            solves = sum(
                self._ridges(each, PROBE_SPARSITY)
                for each in probe_groups(len(self._layers))[layer]
            )
            return {"probes": self._variants(layer) + solves}
        if unit.kind == "block_probe":
            return {"blocks": self._without_blocks(probe_groups(len(self._layers))[layer])}
        if unit.kind == "drop":
            return {"blocks": self._dropping()}
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
        if unit.kind == "refit":  # Both streams; matrices of a few layers are solved.
            return {"refits": 2 * self._tokens * self._layers[layer]}
        if unit.kind == "distill":
            return {"distillation": self._distillation(layer)}
        if unit.kind == "evaluate" and self._spec.evaluation is not None:
            judged = self._spec.evaluation
            tokens = judged.sequences * judged.sequence_length
            return {"evaluation": tokens * (self._body + self._head)}
        if unit.kind == "speed":
            tokens = 2 * passed_tokens(self._spec, self._config)
            return {"speed": tokens * (self._body + self._head)}
        if unit.kind == "samples":
            return {"samples": sampled_tokens(self._spec) * (self._body + self._head)}
        if unit.kind == "tasks":
            return {"evaluation": task_tokens(self._spec) * (self._body + self._head)}
        if unit.kind == "verify":  # Twice: by our forward pass and by transformers'.
            tokens = 2 * VERIFY_SEQUENCES * VERIFY_TOKENS
            return {"verification": tokens * (self._body + self._head)}
        return {}

    def _writing(self) -> dict[str, int]:
        """Text that the model writes itself: every token passes the model once."""
        if self._spec.calibration.source != "self":
            return {}
        return {"writing": self._tokens * (self._body + self._head)}

    def _grams(self, layer: int) -> int:
        train = self._tokens - self._held_out
        return sum(
            gram_flops(site.width, tokens_reaching(self._config, layer, site, train))
            for site in self._sites[layer]
        )

    def _curves(self, layer: int) -> int:
        d = self._config.hidden_size
        return sum(
            sum(curve_flops(site.width, d, self._panels).values()) for site in self._sites[layer]
        )

    def _ridges(self, layer: int, sparsity: float) -> int:
        d, count = self._config.hidden_size, 0
        for site in self._sites[layer]:
            m = site.width
            count += sum(ridge_flops(m, d, math.ceil((1 - sparsity) * m)).values())
        return count

    def _solve(self, layer: int) -> int:
        """Reconstruction and its held-out error, as if every layer lost the same share."""
        sparsity, d = self._spec.pruning.asked_sparsity, self._config.hidden_size
        judged = min(HOLDOUT_TOKENS, self._held_out)
        errors = 0
        for site in self._sites[layer]:
            m, tokens = site.width, tokens_reaching(self._config, layer, site, judged)
            errors += error_flops(m, d, math.ceil((1 - sparsity) * m), tokens)
        return self._ridges(layer, sparsity) + errors

    def _without_blocks(self, group: range) -> int:
        """The model without each block of some layers."""
        layers = [block.layer for block in self._blocks if block.layer in group]
        through = sum(sum(self._layers[layer:]) for layer in layers)
        return self._probed * (through + len(layers) * self._head)

    def _dropping(self) -> int:
        """The model without each of a few blocks, from the middle on the average."""
        count = min(REMEASURED_BLOCKS, len(self._blocks))
        return self._probed * count * (self._body // 2 + self._head)

    def _variants(self, number: int) -> int:
        """Variants of the layers of a group, each from its layer to the model's end."""
        runs, through = 0, 0
        group = probe_groups(len(self._layers))[number]
        for layer in range(group.start, len(self._layers)):
            if layer in group:
                runs += self._kinds(layer)
            through += runs * self._layers[layer]
        # At the end the logits of the dense model and of each variant.
        return self._probed * (through + (runs + 1) * self._head)

    def _kinds(self, layer: int) -> int:
        """Variants of a layer."""
        if self._spec.pruning.removes_experts_alone:
            return int(experts_of(self._config, layer) is not None)
        return len({site.kind for site in self._sites[layer]})

    def _trial(self, layer: int) -> int:
        last = layer == len(self._layers) - 1
        passing = self._layers[layer] + (2 * self._head if last else 0)
        return self._ridges(layer, self._spec.pruning.asked_sparsity) + self._probed * passing

    def _gradient(self, number: int) -> int:
        """A layer forward again and back, as much as forward: weights have no gradient."""
        group = probe_groups(len(self._layers))[number]
        head = 2 * self._head if group.stop == len(self._layers) else 0
        return self._probed * (2 * sum(self._layers[layer] for layer in group) + head)

    def _recovery(self, layer: int) -> int:
        """Dense and pruned layer over all tokens, and forward and back in each step."""
        recover = self._spec.pruning.recover
        steps = 0 if recover is None else recover.steps
        batch, length = RECOVERY_BATCH_TOKENS, self._spec.calibration.sequence_length
        if self._config.generic is not None:
            batch = recovery_sequences(length) * length
        return (2 * self._tokens + 3 * steps * batch) * self._layers[layer]

    def _distillation(self, number: int) -> int:
        """Forward, forward again, and back for weights too: four times forward; the head six."""
        distill = self._spec.pruning.distill
        if distill is None:
            return 0
        steps = len(distill_units(distill.steps)[number])
        sequences = min(distill.batch_sequences, self._train_sequences)
        tokens = steps * sequences * self._spec.calibration.sequence_length
        return tokens * (4 * self._body + 6 * self._head)
