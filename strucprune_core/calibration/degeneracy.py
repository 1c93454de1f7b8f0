"""Refuses or warns of texts that are too uniform to prune a model on; the limits were measured.

A text of one letter, or of special tokens only, gives the same activations at every token. Channels
that such a text does not need look free, and layers are cut to their floors. Two figures show it:

- **distinct tokens**, known before any work. Of 256 tokens of English 154 were distinct
  (SmolLM2-135M's tokenizer), of 2,048 tokens 821; of one sentence, repeated, 7; of one letter 1.
- the **effective rank** of a layer's inputs (`method.site_statistics`), known once the layer is
  captured. The lowest of SmolLM2's 30 layers had 142 for 2,048 tokens of English and 10 for 16, in
  attention 26 and 4; for the sentence 4.6, for the letter 0. Of the tiny random models of all
  families the lowest was 1.9, in attention with 8 tokens. The rank also detects tokens that differ
  in name only. One letter at learned positions (GPT-2, OPT) has many directions: there only the
  count of distinct tokens helps.

Limits shrink where text or vocabulary are small. Below the lower limit a job is refused unless it
sets `calibration.allow_degenerate`; below the upper one it gets a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strucprune_core.errors import InvalidText

LEAST_DISTINCT, FEW_DISTINCT = 16, 64
"""Distinct tokens: below the first the text is refused, below the second there is a warning."""
LEAST_RANK, FEW_RANK = 1.25, 8.0
"""Effective rank, likewise."""

_REMEDY = (
    "Use a more varied text, like those that the model is used on; to accept this one, set "
    "calibration.allow_degenerate."
)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How many tokens a text has, and how many distinct ones."""

    tokens: int
    distinct: int

    @classmethod
    def of(cls, windows: NDArray[np.int32]) -> TokenCounts:
        """Counts over all windows, (sequences x length)."""
        return cls(windows.size, len(np.unique(windows)))

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.distinct:,} distinct tokens in {self.tokens:,}"

    def are_few(self, vocabulary: int) -> bool:
        """Whether there should be a warning."""
        return self.distinct < min(FEW_DISTINCT, self.tokens / 16, vocabulary / 8)

    def are_too_few(self, vocabulary: int) -> bool:
        """Whether the text should be refused."""
        return self.distinct < min(LEAST_DISTINCT, self.tokens / 8, vocabulary / 32)


def refuse_tokens(counts: TokenCounts, vocabulary: int, field: str) -> None:
    """Refuse a text with too few distinct tokens.

    Args:
        counts: Of the calibration windows.
        vocabulary: Tokens that the model knows.
        field: Names the text in the error.

    Raises:
        InvalidText: there are too few.
    """
    if counts.are_too_few(vocabulary):
        raise InvalidText(
            f"the calibration text is degenerate: {counts.words}", field=field, remedy=_REMEDY
        )


def refuse_rank(rank: float | None, columns: int, field: str) -> None:
    """Refuse a text whose tokens all look alike to a layer.

    Args:
        rank: The largest effective rank of the layer's sites; None if all inputs are zero, for
            which the text is not to blame.
        columns: Columns of its widest site. Few columns have few directions on any text.
        field: Names the text in the error.

    Raises:
        InvalidText: the rank is too low.
    """
    if rank is not None and rank < min(LEAST_RANK, columns / 12):
        raise InvalidText(
            f"the calibration text is degenerate: the layer's inputs are nearly the same at all "
            f"tokens (effective rank {rank:.1f})",
            field=field,
            remedy=_REMEDY,
        )


def rank_is_low(rank: float | None, tokens: int, columns: int) -> bool:
    """Whether to warn of a layer's effective rank, given its tokens and its widest site."""
    return rank is not None and rank < min(FEW_RANK, tokens / 20, columns / 12)
