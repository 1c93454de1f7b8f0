"""Processes below one, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Process ids below one, parents first; none of a process that has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]
