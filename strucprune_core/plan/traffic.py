"""What a job reads of its model, and what crosses between host and device, by phase. No torch.

With room for a layer each weight crosses once in a pass, as it is stored; hidden states cross at
most once each way, and a Gram matrix once. Without, they cross for every micro-batch. The same
places are counted while a job runs (`method.linalg.transfers`), so plan and count can be compared.
Tokens, norms outside the layers and what a unit makes of a few numbers are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.method.allocation.energies import PROBE_SPARSITY
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.linalg.transfers import Transferred
from strucprune_core.method.training.schedule import RECOVERY_BATCH_TOKENS, recovery_sequences
from strucprune_core.models.blocks import Block
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import (
    expert_matrices,
    first_experts,
    matrices_bytes,
    without_experts,
)
from strucprune_core.models.structures import Site, sites
from strucprune_core.models.tensors import expected_tensors, layer_tensors
from strucprune_core.models.tiles import (
    HOLDOUT_TOKENS,
    MODEL_CHECK_LAYERS,
    VERIFY_SEQUENCES,
    VERIFY_TOKENS,
    Tiles,
)
from strucprune_core.plan.blocks import (
    REMEASURED_BLOCKS,
    candidates,
    estimated_removal,
)
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import Unit, distill_units, probe_groups
from strucprune_core.plan.memory.forward import (
    ALL_TOKENS,
    FP32_BYTES,
    distinct_layers,
    micro_batch,
)
from strucprune_core.plan.precision import matrices_dtype
from strucprune_core.plan.samples import passes_per_model
from strucprune_core.plan.search import try_units
from strucprune_core.plan.shared_budget import measured_steps
from strucprune_core.plan.sites import (
    equal_widths,
    holdout_sequences,
    kept_experts,
    likely_experts,
    plan_sites,
    probe_shape,
    pruned_config,
    sites_by_layer,
    tokens_reaching,
)
from strucprune_core.plan.sizes import own_units
from strucprune_core.plan.solver_traffic import (
    curve_traffic,
    error_traffic,
    gram_traffic,
    repair_traffic,
)
from strucprune_core.plan.task_memory import task_tokens
from strucprune_core.plan.work import computing_units
from strucprune_core.spec import JobSpec

_MOMENTS = 2
_FP64_BYTES = 8


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How a model's weights are stored.

    Attributes:
        file_bytes: Of its files, for each parameter.
        weight_bytes: Of a weight as it is read, and crosses.
    """

    file_bytes: float
    weight_bytes: int

    @classmethod
    def of(cls, facts: ModelFacts) -> StoredWeights:
        """Those of an inspected model."""
        tensors = facts.index.tensors
        size = sum(tensors[name].size_bytes for name in expected_tensors(facts.config))
        return cls(size / facts.parameters, DTYPE_BYTES[matrices_dtype(facts)])


def phase_traffic(
    spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels, stored: StoredWeights
) -> dict[str, Transferred]:
    """What a whole job moves, by phase, in the order of the phases' first units."""
    phases: dict[str, Transferred] = {}

    def add(units: Iterable[Unit], work: _UnitTraffic, times: int = 1) -> None:
        for unit in units:
            known = phases.get(unit.phase.value, Transferred())
            phases[unit.phase.value] = known.plus(work.of(unit).times(times))

    for number, alone in enumerate(spec.by_size().values()):
        units = computing_units(alone, config)
        own = own_units(units) if number else {unit.name for unit in units}
        work = _UnitTraffic(alone, config, tiles, panels, stored)
        add((unit for unit in units if unit.name in own), work)
    if spec.tries:
        units = computing_units(spec, config)
        add(try_units(units), _UnitTraffic(spec, config, tiles, panels, stored), spec.tries)
    return {phase: moved for phase, moved in phases.items() if any(moved)}


def unit_traffic(
    units: Iterable[Unit],
    spec: JobSpec,
    config: ModelConfig,
    tiles: Tiles,
    panels: Panels,
    stored: StoredWeights,
) -> dict[str, Transferred]:
    """What units of a job of one size move, by name."""
    work = _UnitTraffic(spec, config, tiles, panels, stored)
    return {unit.name: work.of(unit) for unit in units}


class _UnitTraffic:
    """What units of a job of one size move."""

    def __init__(
        self,
        spec: JobSpec,
        config: ModelConfig,
        tiles: Tiles,
        panels: Panels,
        stored: StoredWeights,
    ) -> None:
        self._spec, self._config = spec, config
        self._tiles, self._panels, self._stored = tiles, panels, stored
        text = spec.calibration
        self._samples, self._length = text.samples, text.sequence_length
        self._held_out = holdout_sequences(text.samples)
        self._states = FP32_BYTES * config.hidden_size  # Of a token.
        # What is stored behind hidden states is no output of a matrix.
        carried = 0 if config.generic is None else config.generic.carried.columns
        self._outputs = config.hidden_size - carried
        self._layers = [_parameters(config, layer) for layer in range(config.layers)]
        every = expected_tensors(config)
        self._all = sum(math.prod(shape) for shape in every.values())
        self._embedding = math.prod(every[config.names.embedding])
        self._head = math.prod(every[config.head_matrix])
        names = config.names
        self._into, self._out = (
            math.prod(every[name]) if name in every else 0
            for name in (names.project_in, names.project_out)
        )
        # What transformers' own model holds beside embedding, head and layers.
        self._rest = self._all - sum(self._layers) - self._embedding
        self._rest -= 0 if config.head_matrix == names.embedding else self._head
        self._tiles_count = math.ceil(config.vocab_size / tiles.vocabulary_rows)

    def of(self, unit: Unit) -> Transferred:
        """What a unit moves; nothing where it only writes what is known."""
        step = getattr(self, f"_of_{unit.kind}", None)
        return Transferred() if step is None else step(unit)

    # Parts that units share.

    def _sent(self, parameters: float) -> Transferred:
        """Weights of the model's files that are read and sent to the device."""
        return self._read(parameters).plus(self._sent_again(parameters))

    def _sent_again(self, parameters: float) -> Transferred:
        """Weights that come from elsewhere."""
        return Transferred(to_device=round(parameters * self._stored.weight_bytes))

    def _read(self, parameters: float) -> Transferred:
        return Transferred(read=round(parameters * self._stored.file_bytes))

    def _moved(self, tokens: int, there: int = 1, back: int = 1) -> Transferred:
        """Hidden states of so many tokens, so often each way."""
        size = tokens * self._states
        return Transferred(to_device=there * size, to_host=back * size)

    @property
    def _in_panels(self) -> bool:
        return self._tiles.weight_rows is not None

    def _batches(self, sequences: int, length: int) -> int:
        if not sequences:
            return 0
        return math.ceil(sequences / micro_batch(self._tiles, sequences, length).sequences)

    def _layer(self, layer: int, batches: int, *, share: float = 1.0) -> Transferred:
        """A layer's weights in a pass of so many micro-batches, of which a share is left."""
        return self._sent(share * self._layers[layer] * self._times(layer, batches))

    def _times(self, layer: int, batches: int) -> float:
        """How often a layer's weights are read, on the average."""
        if self._in_panels:
            return batches
        experts = expert_matrices(self._config, layer)
        if not self._tiles.expert_by_expert or experts is None:
            return 1.0
        if self._config.family not in ALL_TOKENS:
            return 1.0  # Each expert computes all of its tokens at once.
        own = experts.count * matrices_bytes(self._config, layer) / FP32_BYTES
        return 1.0 + (batches - 1) * own / self._layers[layer]

    def _gathered(self, layer: int, tokens: int, batches: int) -> Transferred:
        """Tokens on their way to experts that are read one at a time, and their sums back."""
        experts, generic = expert_matrices(self._config, layer), self._config.generic
        gathers = self._tiles.expert_by_expert and batches > 1 and experts is not None
        if not gathers or self._config.family in ALL_TOKENS or generic is None:
            return Transferred()
        chosen = 1 if generic.routing is None else generic.routing.chosen
        return self._moved(tokens, there=2 + chosen, back=1 + chosen)

    def _pass(
        self,
        sequences: int,
        length: int,
        layers: Iterable[int],
        *,
        resident: bool = False,
        share: float = 1.0,
    ) -> Transferred:
        """Hidden states through some layers."""
        tokens, batches = sequences * length, self._batches(sequences, length)
        each = Transferred() if resident else self._moved(tokens)
        return Transferred.total(
            part
            for layer in layers
            for part in (
                self._layer(layer, batches, share=share),
                self._gathered(layer, tokens, batches),
                each,
            )
        )

    def _is_resident(self, tokens: int) -> bool:
        return tokens <= self._tiles.resident_tokens

    def _embedded(self, tokens: int, length: int, *, resident: bool = False) -> Transferred:
        table = self._sent(self._embedding + self._into)
        if self._config.names.positions is not None:  # Added on the host, or on the device.
            rows = length * self._config.hidden_size
            table = table.plus(self._sent(rows) if resident else self._read(rows))
        if self._config.generic is not None:  # The table's rows, then what the class makes of them.
            rows = FP32_BYTES * tokens * self._config.embedding_size
            made = Transferred() if resident else self._moved(tokens, there=0)
            return table.plus(made).plus(
                Transferred() if resident else Transferred(to_device=rows, to_host=rows)
            )
        return table if resident else table.plus(self._moved(tokens, there=0))

    def _scored(self, tokens: int, *, resident: bool = False) -> Transferred:
        """Logits of hidden states, which are loaded for each tile of the head."""
        head = self._sent(self._head + self._out)
        return head if resident else head.plus(self._loaded(tokens))

    def _loaded(self, tokens: int) -> Transferred:
        return self._moved(tokens, there=self._tiles_count, back=0)

    def _divergences(self, others: int, *, resident: bool = False) -> Transferred:
        """Of other models from the dense one, on the probe windows."""
        tokens = math.prod(probe_shape(self._spec.calibration))
        return self._scored(tokens if resident else (1 + others) * tokens)

    @cached_property
    def _sites(self) -> list[list[Site]]:
        return sites_by_layer(self._config, self._spec.pruning)

    @cached_property
    def _left(self) -> list[float]:
        """The share of each layer's parameters that is left, if all layers lose the same."""
        pruning, config = self._spec.pruning, self._config
        if pruning.removes_blocks:
            return [1.0 - estimated_removal(config, pruning) / sum(self._layers)] * config.layers
        if pruning.removes_experts_alone:
            count = kept_experts(pruning, config) if pruning.layout == "uniform" else None
            counts = likely_experts(pruning, config) if count is None else [count] * config.layers
            pruned = without_experts(config, first_experts(config, counts), equally=False)
        else:
            places = plan_sites(config, pruning)
            kept = equal_widths(places, pruning.asked_sparsity)
            pruned = pruned_config(config, pruning, places, kept)
        return [
            _parameters(pruned, layer) / max(1, whole) for layer, whole in enumerate(self._layers)
        ]

    def _repairs(self, layer: int, sparsity: float) -> Transferred:
        return Transferred.total(
            repair_traffic(
                site.width,
                self._outputs,
                math.ceil((1 - sparsity) * site.width),
                self._panels,
                self._stored.weight_bytes,
            ).plus(self._output(site))
            for site in self._sites[layer]
        )

    def _output(self, site: Site) -> Transferred:
        """The matrix that a site's columns belong to, as it is read."""
        return self._read(self._outputs * site.width)

    def _solutions(self, layer: int, sparsity: float) -> int:
        """Numbers of solutions that are on the device."""
        kept = [math.ceil((1 - sparsity) * site.width) for site in self._sites[layer]]
        return self._outputs * sum(k for k in kept if self._panels.fits(k))

    # Units, by kind.

    def _of_weights(self, unit: Unit) -> Transferred:
        return self._read(self._all)

    def _of_model_check(self, unit: Unit) -> Transferred:
        """Some layers in transformers and in ours; the head thrice, of a few tokens.

        Layers in transformers' modules also run with channels cut out and at zero, or in the four
        ways that experts are tried; the head does not.
        """
        tokens = VERIFY_SEQUENCES * VERIFY_TOKENS
        kinds = set(distinct_layers(self._config))
        checked = sorted(kinds | {0, self._config.layers - 1})[:MODEL_CHECK_LAYERS]
        layers = Transferred.total(
            self._layer(layer, 2).plus(self._sent(self._layers[layer])) for layer in checked
        )
        if self._config.generic is not None:
            ways, tried = 4, Transferred()
            if self._spec.pruning.removes_experts:
                ways = 6
                tried = Transferred.total(
                    self._sent((2 + self._left[layer]) * self._layers[layer]).plus(
                        self._read(self._layers[layer])
                    )
                    for layer in checked
                )
            states = self._moved(tokens, there=ways * len(checked), back=ways * len(checked))
            return Transferred.total([layers, tried, states, self._sent(self._embedding)])
        states = self._moved(tokens, there=2 * len(checked), back=2 * len(checked) + 1)
        ends = self._sent(2 * self._embedding + 3 * self._head + self._rest)
        return layers.plus(states).plus(ends)

    def _of_tokens(self, unit: Unit) -> Transferred:
        if unit.name != "tokens" or self._spec.calibration.source != "self":
            return Transferred()
        return self._sent(self._length * (sum(self._layers) + self._head))

    def _of_embed(self, unit: Unit) -> Transferred:
        return self._embedded(self._samples * self._length, self._length)

    def _of_capture(self, unit: Unit) -> Transferred:
        layer, train = unit.index, self._samples - self._held_out
        batches = self._batches(train, self._length), self._batches(self._held_out, self._length)
        tokens = self._samples * self._length
        grams = Transferred.total(
            gram_traffic(site.width, batches[0], self._panels) for site in self._sites[layer]
        )
        seen = min(HOLDOUT_TOKENS, self._held_out * self._length)
        inputs = sum(
            tokens_reaching(self._config, layer, site, seen) * site.width
            for site in self._sites[layer]
        )
        return Transferred.total(
            [
                self._layer(layer, sum(batches)),
                self._gathered(layer, tokens, sum(batches)),
                self._moved(tokens),
                grams,
                Transferred(to_host=FP32_BYTES * inputs),
            ]
        )

    def _of_route(self, unit: Unit) -> Transferred:
        return self._pass(self._samples, self._length, [unit.index])

    def _of_curve(self, unit: Unit) -> Transferred:
        return Transferred.total(
            curve_traffic(
                site.width,
                self._outputs,
                self._panels,
                site.columns,
                self._stored.weight_bytes,
            ).plus(self._output(site))
            for site in self._sites[unit.index]
        )

    def _of_price(self, unit: Unit) -> Transferred:
        structures = sum(site.structures for sites in self._sites for site in sites)
        return Transferred(to_device=2 * _FP64_BYTES * structures)

    def _of_probe(self, unit: Unit) -> Transferred:
        group = probe_groups(self._config.layers)[unit.index]
        alone = self._spec.pruning.removes_experts_alone
        solves = () if alone else (self._repairs(layer, PROBE_SPARSITY) for layer in group)
        return self._variants(group).plus(Transferred.total(solves))

    def _of_review(self, unit: Unit) -> Transferred:
        """Solutions of a round are sent with each variant, and with the layers that all pass."""
        group = probe_groups(self._config.layers)[unit.index]
        return self._variants(group)

    def _variants(self, group: range) -> Transferred:
        sequences, length = probe_shape(self._spec.calibration)
        tokens = sequences * length
        kinds = [self._kinds(layer) for layer in range(self._config.layers)]
        resident = self._is_resident(max(1, max(kinds)) * len(group) * tokens)
        runs, parts = 0, []
        for layer in range(group.start, self._config.layers):
            batches = self._batches(runs * sequences, length) if runs else 0
            here = kinds[layer] if layer in group else 0
            one = here * self._batches(sequences, length)
            parts.append(self._layer(layer, batches + one if self._in_panels else 1))
            if self._in_panels:  # Solutions are in scratch.
                parts.append(self._read(-one * self._solved(layer) / max(1, here)))
            if self._spec.pruning.removes_experts_alone and here:  # Without some experts.
                parts.append(self._sent((1 - PROBE_SPARSITY) * self._layers[layer]))
            parts.append(self._moved(here * tokens, back=0 if resident else 1))
            if not resident:
                parts.append(self._moved(runs * tokens))
            runs += here
        return Transferred.total([*parts, self._divergences(runs, resident=resident)])

    def _kinds(self, layer: int) -> int:
        if self._spec.pruning.removes_experts_alone:
            return int(expert_matrices(self._config, layer) is not None)
        return len({site.kind for site in self._sites[layer]})

    def _of_gradient(self, unit: Unit) -> Transferred:
        """A window at a time: its input and the gradient there, and the gradient back."""
        group = probe_groups(self._config.layers)[unit.index]
        tokens = math.prod(probe_shape(self._spec.calibration))
        layers = [
            self._sent(self._layers[layer]).plus(self._moved(tokens, there=2)) for layer in group
        ]
        if group.stop == self._config.layers:
            layers.append(self._sent(self._head).plus(self._moved(tokens, there=2)))
        return Transferred.total(layers)

    def _of_trial(self, unit: Unit) -> Transferred:
        layer, pruning = unit.index, self._spec.pruning
        sequences, length = probe_shape(self._spec.calibration)
        parts = [
            self._repairs(layer, pruning.asked_sparsity),
            self._pass(sequences, length, [layer]),
        ]
        if layer == self._config.layers - 1:
            parts.append(self._divergences(1))
        if unit.round < pruning.rounds:
            size = self._solutions(layer, pruning.asked_sparsity)
            parts.append(Transferred(to_host=FP32_BYTES * size))
        return Transferred.total(parts)

    def _of_block_probe(self, unit: Unit) -> Transferred:
        group = probe_groups(self._config.layers)[unit.index]
        found = [b for b in candidates(self._config, self._spec.pruning) if b.layer in group]
        return self._without_each(found, group.start)

    def _of_drop(self, unit: Unit) -> Transferred:
        if unit.index == 1:  # The dense model is measured already.
            return Transferred()
        found = candidates(self._config, self._spec.pruning)
        step = max(1, len(found) // REMEASURED_BLOCKS)
        return self._without_each(found[::step][:REMEASURED_BLOCKS], 0)

    def _without_each(self, found: Sequence[Block], first: int) -> Transferred:
        """Models without one block each, side by side, beside the one with all until the last."""
        if not found:
            return Transferred()
        sequences, length = probe_shape(self._spec.calibration)
        tokens, parts = sequences * length, []
        last = max(block.layer for block in found)
        for layer in range(first, self._config.layers):
            before = sum(block.layer < layer for block in found)
            # Without the whole layer nothing runs.
            here = sum(block.layer == layer and block.structure != "layers" for block in found)
            here += layer < last
            batches = self._batches(before * sequences, length) if before else 0
            batches += here * self._batches(sequences, length)
            parts += [self._layer(layer, batches), self._moved((before + here) * tokens)]
        return Transferred.total([*parts, self._divergences(len(found))])

    def _of_expert_probe(self, unit: Unit) -> Transferred:
        runs = len(measured_steps(self._config, self._spec.pruning))
        sequences, length = probe_shape(self._spec.calibration)
        layers = range(self._config.layers)
        return self._pass(runs * sequences, length, layers).plus(self._divergences(runs))

    def _of_divergence(self, unit: Unit) -> Transferred:
        sequences, length = probe_shape(self._spec.calibration)
        return Transferred.total(
            [
                self._embedded(sequences * length, length),
                *(
                    self._pass(sequences, length, [layer], share=self._left[layer])
                    for layer in range(self._config.layers)
                ),
                self._divergences(1),
            ]
        )

    def _of_solve(self, unit: Unit) -> Transferred:
        layer, sparsity = unit.index, self._spec.pruning.asked_sparsity
        judged = min(HOLDOUT_TOKENS, self._held_out * self._length)
        errors = Transferred.total(
            error_traffic(
                site.width,
                self._outputs,
                math.ceil((1 - sparsity) * site.width),
                tokens_reaching(self._config, layer, site, judged),
                self._panels,
                self._stored.weight_bytes,
            ).plus(self._output(site))
            for site in self._sites[layer]
        )
        admm = Transferred()
        if self._spec.pruning.solver == "admm":  # Matrices and held-out inputs once more.
            admm = errors.plus(
                Transferred(
                    to_device=FP32_BYTES * sum(site.width**2 for site in self._sites[layer])
                )
            )
        back = Transferred(to_host=FP32_BYTES * self._solutions(layer, sparsity))
        return Transferred.total([self._repairs(layer, sparsity), errors, admm, back])

    def _of_repair(self, unit: Unit) -> Transferred:
        """The dense and the pruned layer, twice each, with what experts are given and lack."""
        tokens = self._samples * self._length
        weights = self._sent(self._layers[unit.index] * (1 + 2 * self._left[unit.index]))
        first = self._embedded(tokens, self._length) if unit.index == 0 else Transferred()
        return Transferred.total([weights, self._moved(tokens, there=4, back=6), first])

    def _of_replay(self, unit: Unit) -> Transferred:
        return self._embedded(self._samples * self._length, self._length)

    def _of_refit(self, unit: Unit) -> Transferred:
        """Both streams. Which FFNs are solved again is known only when the blocks are."""
        tokens, layer = self._samples * self._length, unit.index
        passes = [self._sent(self._layers[layer]), self._moved(tokens)]
        if layer + 1 < self._config.layers:
            passes += [self._sent(self._left[layer] * self._layers[layer]), self._moved(tokens)]
        return Transferred.total(passes)

    def _of_recover(self, unit: Unit) -> Transferred:
        """The layer's two streams before training and after it, and what is trained on."""
        spec, layer = self._spec.pruning.recover, unit.index
        assert spec is not None  # noqa: S101 - else there is no such unit
        tokens, streams = self._samples * self._length, 1 if spec.mode == "parallel" else 2
        trained = self._trained(layer)
        solutions = FP32_BYTES * self._solutions(layer, self._spec.pruning.asked_sparsity)
        parts = [self._sent(self._layers[layer]), Transferred(to_device=solutions)]
        whole = self._config.generic is not None
        if trained:
            steps = spec.steps * RECOVERY_BATCH_TOKENS
            if whole:
                sequences = min(recovery_sequences(self._length), self._samples - self._held_out)
                steps = spec.steps * sequences * self._length
            else:
                steps = spec.steps * min(
                    RECOVERY_BATCH_TOKENS, (self._samples - self._held_out) * self._length
                )
            shown = steps + 2 * self._held_out * self._length  # And the error before and after.
            parts += [
                self._moved(tokens, there=streams, back=1 if whole else 3),
                Transferred(to_host=FP32_BYTES * tokens),
                self._moved(shown, there=2, back=0),
                Transferred(to_device=FP32_BYTES * shown, to_host=FP32_BYTES * trained),
            ]
        if layer + 1 < self._config.layers:
            kept = 2 if trained and streams == 2 and not whole else 0
            parts.append(self._moved(tokens, there=streams + kept, back=streams))
        return Transferred.total(parts)

    def _trained(self, layer: int) -> int:
        """Numbers of the matrices of a layer's FFNs in the result."""
        count = self._ffns(layer)
        pruned = any(site.kind == "ffn" for site in self._sites[layer])
        return round(count * ((1 - self._spec.pruning.asked_sparsity) if pruned else 1.0))

    def _ffns(self, layer: int) -> int:
        """Parameters of the matrices of a layer's FFNs."""
        shapes = layer_tensors(self._config, layer)
        return sum(
            math.prod(shapes[part.role])
            for site in sites(self._config, layer, ("ffn_channels",))
            for part in (site.output, *site.coupled)
            if part.role.endswith(".weight")
        )

    def _of_distill(self, unit: Unit) -> Transferred:
        """Each step forward and back; matrices with their moments come from files, and go there."""
        spec = self._spec.pruning.distill
        assert spec is not None  # noqa: S101 - else there is no such unit
        units = distill_units(spec.steps)
        steps = len(units[unit.index])
        train = self._samples - self._held_out
        tokens = min(spec.batch_sequences, train) * self._length
        left = [share * whole for share, whole in zip(self._left, self._layers, strict=True)]
        matrices = sum(left)
        layers = self._config.layers
        state = FP32_BYTES * matrices
        forward = Transferred.total(
            [
                self._embedded(tokens, self._length),
                self._moved(layers * tokens),
                Transferred(to_device=round(state)),
            ]
        )
        at_the_end = self._sent(self._head).plus(self._moved(tokens, there=3))
        moved = round((1 + _MOMENTS) * state)
        back = self._moved(layers * tokens, there=2).plus(
            Transferred(to_device=moved, to_host=moved)
        )
        parts = [Transferred.total([forward, at_the_end, back]).times(steps)]
        if unit.index == 0:  # Forward and back come from the model's files.
            # What is cut there is read whole.
            files = self._read(sum(self._layers)).plus(self._sent_again(matrices))
            files = files.plus(Transferred(to_device=-round(state)))
            moments = Transferred(to_device=-round(_MOMENTS * state))
            parts += [files.times(2), moments, self._held_out_divergence(matrices, from_files=True)]
        if unit.index + 1 == len(units):
            parts += [
                self._held_out_divergence(matrices, from_files=False),
                Transferred(to_device=round(state), to_host=round(state)),
            ]
        return Transferred.total(parts)

    def _held_out_divergence(self, matrices: float, *, from_files: bool) -> Transferred:
        count = min(self._held_out, max(1, HOLDOUT_TOKENS // self._length))
        tokens = count * self._length
        weights = (
            self._read(sum(self._layers)).plus(self._sent_again(matrices))
            if from_files
            else Transferred(to_device=round(FP32_BYTES * matrices))
        )
        return Transferred.total(
            [
                self._embedded(tokens, self._length),
                weights,
                self._moved(self._config.layers * tokens),
                self._scored(2 * tokens),
            ]
        )

    def _of_assemble(self, unit: Unit) -> Transferred:
        """All but what is solved and trained."""
        return self._read(self._all - self._made)

    @cached_property
    def _made(self) -> int:
        """Parameters that are not copied from the model's files."""
        if self._spec.pruning.distill is not None:
            return sum(self._layers)
        if self._spec.pruning.recover is not None:
            return sum(self._ffns(layer) for layer in range(self._config.layers))
        if self._spec.pruning.removes_experts_alone:  # What goes is not read.
            left = zip(self._left, self._layers, strict=True)
            return round(sum((1.0 - share) * whole for share, whole in left))
        if self._spec.pruning.removes_blocks:
            return estimated_removal(self._config, self._spec.pruning)
        return sum(self._solved(layer) for layer in range(self._config.layers))

    def _solved(self, layer: int) -> int:
        """Parameters of the matrices whose columns are solved again."""
        return self._outputs * sum(site.width for site in self._sites[layer])

    def _of_gguf(self, unit: Unit) -> Transferred:
        return self._read(self._all)

    _of_gguf_q8_0 = _of_block_configs = _of_gguf

    def _of_fp8(self, unit: Unit) -> Transferred:
        return self._read(2 * self._all)

    def _of_check(self, unit: Unit) -> Transferred:
        """Compared tensor by tensor, then as the result is."""
        return self._read(self._all).plus(self._of_verify(unit))

    def _of_evaluate(self, unit: Unit) -> Transferred:
        judged = self._spec.evaluation
        assert judged is not None  # noqa: S101 - else there is no such unit
        tokens = judged.sequences * judged.sequence_length
        resident = self._is_resident(tokens)
        dense = unit.name == "evaluate.dense"
        parts = [
            self._embedded(tokens, judged.sequence_length, resident=resident),
            *(
                self._pass(
                    judged.sequences,
                    judged.sequence_length,
                    [layer],
                    resident=resident,
                    share=1.0 if dense else self._left[layer],
                )
                for layer in range(self._config.layers)
            ),
            self._scored(tokens, resident=resident),
        ]
        found = Transferred.total(parts)
        return found if dense else found._replace(read=0)  # The result's own files.

    def _of_samples(self, unit: Unit) -> Transferred:
        passes = passes_per_model(self._spec, self._config)
        found = self._sent(passes * (sum(self._layers) + self._head))
        return found if unit.name == "samples.dense" else found._replace(read=0)

    def _of_tasks(self, unit: Unit) -> Transferred:
        tokens = task_tokens(self._spec) // 2
        found = Transferred.total(
            [
                self._embedded(tokens, VERIFY_TOKENS),
                self._sent(sum(self._layers)),
                self._moved(self._config.layers * tokens),
                self._scored(tokens),
            ]
        )
        return found if unit.name == "tasks.dense" else found._replace(read=0)

    def _of_verify(self, unit: Unit) -> Transferred:
        """A few tokens through the result in our layers, and in transformers' by its files."""
        tokens = VERIFY_SEQUENCES * min(VERIFY_TOKENS, self._length)
        ends = self._embedding + self._head + self._into + self._out
        left = sum(share * whole for share, whole in zip(self._left, self._layers, strict=True))
        read = sum(self._layers) + ends
        pruning = self._spec.pruning
        if self._in_panels or pruning.removes_blocks or pruning.removes_experts_alone:
            read -= self._made
        elif self._spec.pruning.distill is not None:  # Of a site what is cut is read first.
            read -= sum(whole - self._ffns(layer) for layer, whole in enumerate(self._layers))
        return Transferred.total(
            [
                self._read(read),
                self._sent_again(2 * (left + ends) + self._rest),
                self._moved(self._config.layers * tokens),
                self._moved(tokens, there=0, back=1 if self._config.generic is None else 2),
            ]
        )

    def _of_speed(self, unit: Unit) -> Transferred:
        """The dense model is written as it is read. Other processes run the models."""
        return self._read(self._all)


def _parameters(config: ModelConfig, layer: int) -> int:
    return sum(math.prod(shape) for shape in layer_tensors(config, layer).values())
