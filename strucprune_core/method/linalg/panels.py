"""How large the pieces of a solve are. No torch: planner and execution share it."""

from __future__ import annotations

from dataclasses import dataclass

RESIDENT = 1 << 62
"""A panel that any matrix fits."""

BLOCK_CHANNELS = 16
"""Channels that a damage curve removes at a time."""

RESIDENT_STEP = 128
"""Rows worked on at a time in a matrix on the device: a panel stays in the processor's caches."""

RESIDENT_ROWS = 1024
"""Rows of a weight matrix that pass through such a matrix at a time."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Sizes of pieces.

    Attributes:
        panel: Rows and columns of a matrix that visit the device at a time. A matrix of no more
            columns lies on the device whole.
        superblock: Columns that a damage curve removes before it updates the rest of its matrices.
    """

    panel: int = RESIDENT
    superblock: int = 256

    def fits(self, columns: int) -> bool:
        """Whether a matrix of so many columns lies on the device whole."""
        return columns <= self.panel

    def step(self, columns: int) -> int:
        """Rows that are worked on at a time in a matrix of so many columns."""
        return min(columns, RESIDENT_STEP if self.fits(columns) else self.panel)

    def capacity(self, columns: int, most: int) -> int:
        """Columns that are removed, `most` at a time, between two updates of the matrices."""
        return min(columns, max(self.superblock, most) // most * most)

    def rows(self, columns: int) -> int:
        """Rows of a weight matrix that pass through a matrix of so many columns at a time."""
        return RESIDENT_ROWS if self.fits(columns) else self.panel


ALL_RESIDENT = Panels()
"""Everything on the device."""
