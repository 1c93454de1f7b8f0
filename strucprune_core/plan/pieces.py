"""Chooses the pieces in which a job runs, so that it fits into memory. No torch.

Without a limit a small layer is resident, and everything else comes in pieces of a fixed size. What
a job holds then grows with the model's width, but not with its depth or the square of its width.
With a limit, each step gets the largest pieces that fit, since steps follow one another. If even
the smallest do not fit, the job is refused, and the error names the amount that suffices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import expert_matrices
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.memory.device import SOLVER_STEPS, VOCABULARY_STEPS, device_terms
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

MARGIN = 1.05
"""A plan stays below its limit by this factor, since it is accurate to a few percent."""

_LEAST_TOKENS = 512  # Below it matrix products are slow, so panels of weights come first.


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
    if limit is None or plan.device_peak_bytes * MARGIN <= limit:
        return plan
    for steps, ladder in (
        (SOLVER_STEPS, _panel_ladder),
        (VOCABULARY_STEPS, _vocabulary_ladder),
        (None, _layer_ladder),
    ):
        rungs = (_planned(spec, config, *pieces) for pieces in ladder(plan, spec, config))
        plan = _largest_that_fits(rungs, steps, limit)
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
    tiles = Tiles(
        micro_batch_tokens=spec.runtime.micro_batch_tokens,
        weight_rows=rows,
        operand_bytes=planned_operand_bytes(spec),
    )
    widest = max(max(block.ffn_widths, default=0) for block in config.blocks)
    whole = widest <= RESIDENT_GRAM_COLUMNS or spec.pruning.solver == "admm"
    panels = Panels() if whole else Panels(panel=DEFAULT_PANEL_ROWS)
    return _planned(spec, config, tiles, panels)


def _planned(spec: JobSpec, config: ModelConfig, tiles: Tiles, panels: Panels) -> Plan:
    return Plan(tiles, panels, device_terms(spec, config, tiles, panels))


def _largest_that_fits(rungs: Iterator[Plan], steps: frozenset[str] | None, limit: int) -> Plan:
    """The first plan with which the steps fit (all of them if None), or that needs least."""
    needs: list[tuple[int, Plan]] = []
    for rung in rungs:
        need = max(
            (value for name, value in rung.device_terms.items() if steps is None or name in steps),
            default=0,
        )
        if need * MARGIN <= limit:
            return rung
        needs.append((need, rung))
    return min(needs, key=lambda pair: pair[0])[1]


def _panel_ladder(plan: Plan, spec: JobSpec, config: ModelConfig) -> Iterator[tuple[Tiles, Panels]]:
    yield plan.tiles, plan.panels
    if spec.pruning.solver == "admm":
        return  # ADMM works on whole matrices.
    for panel in _halves(RESIDENT_GRAM_COLUMNS // 2, 32):
        yield plan.tiles, Panels(panel, min(plan.panels.superblock, panel))


def _vocabulary_ladder(
    plan: Plan, spec: JobSpec, config: ModelConfig
) -> Iterator[tuple[Tiles, Panels]]:
    pieces = [(rows, tokens) for rows in _halves(4096, 64) for tokens in _halves(2048, 32)]
    for rows, tokens in sorted(pieces, key=lambda pair: -min(pair) * (pair[0] + pair[1])):
        yield replace(plan.tiles, vocabulary_rows=rows, head_tokens=tokens), plan.panels


def _layer_ladder(plan: Plan, spec: JobSpec, config: ModelConfig) -> Iterator[tuple[Tiles, Panels]]:
    """A resident layer with fewer tokens, then panels with many tokens, then with fewer.

    A layer in transformers' modules has no panels: there one expert is resident instead.
    """
    most = spec.runtime.micro_batch_tokens
    tokens = [most, *_halves(most // 2, 1)]
    ample = [count for count in tokens if count >= _LEAST_TOKENS] or tokens[:1]
    pieces: list[tuple[int, int | None]] = []
    if plan.tiles.weight_rows is None:
        pieces += [(count, None) for count in ample]
    if config.generic is not None:
        routed = any(expert_matrices(config, layer) for layer in range(config.layers))
        rungs = [(count, False) for count in (ample if routed else tokens)]
        rungs += [(count, True) for count in tokens if routed]
        for count, one in rungs:
            tiles = replace(plan.tiles, micro_batch_tokens=count, expert_by_expert=one)
            yield tiles, plan.panels
        return
    pieces += [(count, rows) for rows in _halves(DEFAULT_PANEL_ROWS, 128) for count in ample]
    pieces += [(count, rows) for count in tokens for rows in _halves(128, 16)]
    for count, rows in pieces:
        yield replace(plan.tiles, micro_batch_tokens=count, weight_rows=rows), plan.panels


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
