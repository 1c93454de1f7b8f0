"""What a site's Gram matrix rests on: how many tokens, and how much of it was assumed. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SiteStatistics:
    """Figures of a site in addition to its Gram matrix G; see `method.gram`.

    Attributes:
        tokens: Tokens that reached it, n.
        columns: Its columns, m.
        energy: Mean diagonal of G as measured.
        assumed: What was added to the diagonal of G because n < m; else 0.
        effective_rank: (columns that vary)^2 / sum of squared correlations of all pairs of them:
            their number if no two go together, 1 if all do, 0 if none varies between tokens; None
            if no column has any energy.
    """

    tokens: int
    columns: int
    energy: float
    assumed: float
    effective_rank: float | None

    @property
    def measured_share(self) -> float:
        """Share of the energy, and so about that of any damage, that was measured."""
        total = self.energy + self.assumed
        return self.energy / total if self.assumed > 0.0 else 1.0
