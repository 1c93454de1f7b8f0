"""Errors of units: where they happened, and what is out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from strucprune_core.errors import OutOfMemory, StrucPruneError
from strucprune_core.plan.graph import Unit
from strucprune_core.scratch.directories import scratch_errors

# Kinds of units whose index is a layer.
_OF_A_LAYER = ("capture", "curve", "trial", "solve", "recover")
# Kinds that push tokens through layers: smaller micro-batches need less memory there.
_PUSHES_TOKENS = ("capture", "probe", "distill", "evaluate", "tasks")


@contextmanager
def errors_of(unit: Unit) -> Iterator[None]:
    """Add phase and layer to errors that do not name them, and give lack of memory its type."""
    try:
        # Stores have errors of their own: what else the system refuses is scratch.
        with scratch_errors(f"what {unit.name} works on"):
            yield
    except StrucPruneError as error:
        if error.phase is None:
            error.phase = unit.phase.value
            error.layer = _layer_of(unit) if error.layer is None else error.layer
        raise
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _out_of_memory(unit, error) from error


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out: torch's CPU allocator says so with a plain RuntimeError."""
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or "DefaultCPUAllocator" in str(error)


def _out_of_memory(unit: Unit, error: BaseException) -> OutOfMemory:
    pushes_tokens = unit.kind in _PUSHES_TOKENS
    return OutOfMemory(
        f"out of memory in {unit.name}: {error}",
        field="runtime.micro_batch_tokens" if pushes_tokens else None,
        remedy="Lower runtime.micro_batch_tokens, or use a machine with more memory."
        if pushes_tokens
        else "Use a machine with more memory; `strucprune_core.plan.estimate` says how much.",
        phase=unit.phase.value,
        layer=_layer_of(unit),
    )


def _layer_of(unit: Unit) -> int | None:
    return unit.index if unit.kind in _OF_A_LAYER else None
