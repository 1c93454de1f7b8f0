"""Chooses the pieces in which a job runs, so that it fits into memory. No torch.

Without a limit nothing is known of the device: a small layer is resident, and everything else comes
in pieces of a fixed size. What a job holds then grows with the model's width, but not with its
depth or the square of its width.

With a limit the pieces are the largest that fit, and what saves most copies between host and device
comes first: whole layers and whole Gram matrices, which then cross once; hidden states that stay on
the device from layer to layer; the number of tokens at a time; a layer that is read ahead; large
tiles of the vocabulary. If even the smallest pieces do not fit, the job is refused, and the error
names the amount that suffices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import expert_matrices
from strucprune_core.models.tiles import DEFAULT_TOKENS, Tiles
from strucprune_core.plan.memory.device import (
    SOLVER_STEPS,
    VOCABULARY_STEPS,
    device_terms,
    passing_tokens,
)
from strucprune_core.plan.memory.forward import layer_bytes
from strucprune_core.plan.memory.host import PROCESS_BYTES, host_terms
from strucprune_core.plan.precision import planned_operand_bytes
from strucprune_core.spec import JobSpec

RESIDENT_LAYER_BYTES = 256 * 2**20
"""Without a limit, a larger layer is processed in panels."""

DEFAULT_PANEL_ROWS = 1024
"""Rows of a panel, of weights and of Gram matrices, without a limit."""

RESIDENT_GRAM_COLUMNS = 4096
"""Without a limit, the matrices of a wider site are solved in panels."""

MOST_TOKENS = 2**15
"""Most tokens at a time of resident layers: more would save no copies, and are no faster."""

MOST_RESTREAMED_TOKENS = 2**20
"""The same where a layer is read again for every micro-batch, so that more tokens save reading."""

MARGIN = 1.05
"""A plan stays below its limit by this factor, since it is accurate to a few percent."""

_LEAST_TOKENS = 512  # Below it matrix products are slow, so panels of weights come first.
_AMPLE_TOKENS = 4096  # From here on hidden states on the device save more than more tokens at once.
_LEAST_HEAD_TOKENS = 256  # Whole tiles of the vocabulary are not bought with fewer.


_Pieces = tuple[Tiles, Panels]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job runs.

    Attributes:
        tiles: Pieces of what is run through the model.
        panels: Pieces of what is solved.
        device_terms: Peak bytes on the device, by step.
    """

    tiles: Tiles
    panels: Panels
    device_terms: dict[str, int]

    @property
    def device_peak_bytes(self) -> int:
        """Peak on the device."""
        return max(self.device_terms.values())


def plan_job(spec: JobSpec, config: ModelConfig) -> Plan:
    """Choose the pieces of a job.

    Raises:
        InvalidSpec: it does not fit its limit, whatever the pieces.
    """
    plan = _default(spec, config)
    limit, field, fixed = _limit(spec, config)
    if limit is None:
        return plan
    plan = _Search(spec, config, limit).largest(plan)
    if plan.device_peak_bytes * MARGIN > limit:
        step = max(plan.device_terms, key=plan.device_terms.__getitem__)
        least = math.ceil(plan.device_peak_bytes * MARGIN) + fixed
        raise InvalidSpec(
            f"the job does not fit {limit + fixed:,} bytes: {step} needs {least:,}",
            field=field,
            remedy=f"Allow at least {least:,} bytes{_advice(step)}.",
            mends=[Mend(field, least)],
        )
    return plan


def _limit(spec: JobSpec, config: ModelConfig) -> tuple[int | None, str, int]:
    """Bytes that tensors may take, the field that limits them, and other bytes that it covers.

    Raises:
        InvalidSpec: the process alone takes more host memory than is allowed.
    """
    runtime = spec.runtime
    device, host = runtime.device_memory_bytes, runtime.host_memory_bytes
    if host is None:
        return device, "runtime.device_memory_bytes", 0
    fixed = PROCESS_BYTES + max(host_terms(spec, config).values())
    left = host - fixed
    if runtime.on_gpu and left >= 0:
        return device, "runtime.device_memory_bytes", 0
    if runtime.on_gpu or left <= 0:
        raise InvalidSpec(
            f"the process itself takes {fixed:,} bytes of host memory",
            field="runtime.host_memory_bytes",
            remedy=f"Allow more than {fixed:,} bytes.",
        )
    if device is not None and device <= left:
        return device, "runtime.device_memory_bytes", 0
    return left, "runtime.host_memory_bytes", fixed


def _default(spec: JobSpec, config: ModelConfig) -> Plan:
    """The pieces without a limit."""
    largest = max(layer_bytes(config, layer) for layer in range(config.layers))
    resident = config.generic is not None or largest <= RESIDENT_LAYER_BYTES
    rows = None if resident else DEFAULT_PANEL_ROWS
    tokens = spec.runtime.micro_batch_tokens or DEFAULT_TOKENS
    tiles = Tiles(
        micro_batch_tokens=tokens,
        weight_rows=rows,
        operand_bytes=planned_operand_bytes(spec),
        layers_ahead=1 if resident else 0,
    )
    widest = max(max(block.ffn_widths, default=0) for block in config.blocks)
    whole = widest <= RESIDENT_GRAM_COLUMNS or spec.pruning.solver == "admm"
    panels = Panels() if whole else Panels(panel=DEFAULT_PANEL_ROWS)
    return _planned(spec, config, tiles, panels)


def _planned(spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels) -> Plan:
    return Plan(tiles, panels, device_terms(spec, config, tiles, panels))


class _Search:
    """Looks for the largest pieces under a limit.

    Args:
        spec: The job.
        config: Its model.
        limit: Bytes that tensors may take.
    """

    def __init__(self, spec: JobSpec, config: ModelConfig, limit: int) -> None:
        self._spec, self._config, self._limit = spec, config, limit
        text, judged = spec.calibration, spec.evaluation
        longest = text.samples * text.sequence_length
        if judged is not None:
            longest = max(longest, judged.sequences * judged.sequence_length)
        self._all_tokens = longest

    def largest(self, plan: Plan) -> Plan:
        """The largest pieces that fit; those that need least if none do.

        A layer is read ahead if there is room for it beside all but larger tiles.
        """
        plan = self._planned((replace(plan.tiles, layers_ahead=0), plan.panels))
        plan = self._best(((plan.tiles, panels) for panels in self._panels(plan)), SOLVER_STEPS)
        plan = self._best(self._small_tiles(plan), VOCABULARY_STEPS)
        plan = self._layers(plan)
        if not self._fits(plan):
            return plan
        ahead = self._planned((replace(plan.tiles, layers_ahead=1), plan.panels))
        if plan.tiles.whole_layers and self._fits(ahead):
            plan = ahead
        return next(filter(self._fits, map(self._planned, self._large_tiles(plan))), plan)

    def _layers(self, plan: Plan) -> Plan:
        """Whole layers if Gram matrices in panels allow them, else whatever fits."""
        choices = [plan.panels]
        smaller = [*self._panels(plan)][1:]
        if plan.panels == Panels():
            choices += smaller[:1]
        for panels in choices:
            for tiles in self._whole_layers(plan):
                found = self._planned((tiles, panels))
                if self._fits(found):
                    return found
        choices += smaller[-1:]
        pieces = ((tiles, panels) for panels in choices for tiles in self._parts_of_layers(plan))
        return self._best(pieces, None)

    def _planned(self, pieces: _Pieces) -> Plan:
        return _planned(self._spec, self._config, *pieces)

    def _fits(self, plan: Plan, steps: frozenset[str] | None = None) -> bool:
        return _need(plan, steps) * MARGIN <= self._limit

    def _best(self, pieces: Iterator[_Pieces], steps: frozenset[str] | None) -> Plan:
        """The first with which the steps fit (all of them if None), or that needs least."""
        needs: list[tuple[int, Plan]] = []
        for plan in map(self._planned, pieces):
            if self._fits(plan, steps):
                return plan
            needs.append((_need(plan, steps), plan))
        return min(needs, key=lambda pair: pair[0])[1]

    def _panels(self, plan: Plan) -> Iterator[Panels]:
        yield Panels()
        if self._spec.pruning.solver == "admm":
            return  # ADMM works on whole matrices.
        for panel in _halves(RESIDENT_GRAM_COLUMNS // 2, 32):
            yield Panels(panel, min(plan.panels.superblock, panel))

    def _small_tiles(self, plan: Plan) -> Iterator[_Pieces]:
        """Tiles of the vocabulary: those without a limit, and smaller ones."""
        pieces = [(rows, tokens) for rows in _halves(4096, 64) for tokens in _halves(2048, 32)]
        for rows, tokens in sorted(pieces, key=lambda pair: -min(pair) * (pair[0] + pair[1])):
            yield replace(plan.tiles, vocabulary_rows=rows, head_tokens=tokens), plan.panels

    def _large_tiles(self, plan: Plan) -> Iterator[_Pieces]:
        """Larger ones: hidden states that are not resident are loaded for each of them."""
        vocabulary = self._config.vocab_size
        powers = _halves(2 ** max(0, vocabulary - 1).bit_length() // 2, 1)
        for rows in (vocabulary, *powers):
            for tokens in _halves(2048, _LEAST_HEAD_TOKENS):
                if rows > plan.tiles.vocabulary_rows:
                    yield replace(plan.tiles, vocabulary_rows=rows, head_tokens=tokens), plan.panels

    def _tokens(self, most: int) -> list[int]:
        """Numbers of tokens at a time, the largest first."""
        most = self._spec.runtime.micro_batch_tokens or min(most, max(8, self._all_tokens))
        return [most, *_halves(2 ** ((most - 1).bit_length() - 1), 1)]

    def _whole_layers(self, plan: Plan) -> Iterator[Tiles]:
        """Whole layers: with hidden states on the device, then with the others in scratch."""
        tokens = self._tokens(MOST_TOKENS)
        tiles = replace(plan.tiles, weight_rows=None)
        passes = sorted(passing_tokens(self._spec, self._config), reverse=True)
        for resident in passes:
            for count in _from(_AMPLE_TOKENS, tokens):
                yield replace(tiles, micro_batch_tokens=count, resident_tokens=resident)
        for count in _from(_LEAST_TOKENS, tokens):
            yield replace(tiles, micro_batch_tokens=count)

    def _parts_of_layers(self, plan: Plan) -> Iterator[Tiles]:
        """Whole layers with ever fewer tokens, or panels with many tokens, then with fewer.

        A layer in transformers' modules has no panels: there one expert is resident instead.
        """
        tokens, many = self._tokens(MOST_TOKENS), self._tokens(MOST_RESTREAMED_TOKENS)
        if self._config.generic is not None:
            yield from (replace(plan.tiles, micro_batch_tokens=count) for count in tokens)
            if any(expert_matrices(self._config, layer) for layer in range(self._config.layers)):
                for count in tokens:
                    yield replace(plan.tiles, micro_batch_tokens=count, expert_by_expert=True)
            return
        pieces = [
            (count, rows)
            for rows in _halves(DEFAULT_PANEL_ROWS, 128)
            for count in _from(_LEAST_TOKENS, many)
        ]
        pieces += [(count, rows) for count in tokens for rows in _halves(128, 16)]
        for count, rows in pieces:
            yield replace(plan.tiles, micro_batch_tokens=count, weight_rows=rows)


def _need(plan: Plan, steps: frozenset[str] | None) -> int:
    """Peak of some steps, of all if None."""
    terms = plan.device_terms.items()
    return max((size for name, size in terms if steps is None or name in steps), default=0)


def _from(least: int, tokens: list[int]) -> list[int]:
    """Those numbers that are not smaller than `least`; the largest if all are."""
    return [count for count in tokens if count >= least] or tokens[:1]


def _halves(most: int, least: int) -> Iterator[int]:
    """most, most / 2, … down to least."""
    while most >= least:
        yield most
        most //= 2


def _advice(step: str) -> str:
    """What else would help a step that cannot be divided any further."""
    if step == "repair":
        return ", or do without expert_repair, which holds whole layers"
    if step in ("recovery", "distillation", "gradient"):
        return f", or do without {step}, which holds whole layers"
    if step == "admm":
        return ", or use the solver 'obs', which works in panels"
    return ", or use shorter sequences"
