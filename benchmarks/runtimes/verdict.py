"""What a row proves, and what of it contradicts the library."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.runtimes.comparison import Agreement
from benchmarks.runtimes.table import Row

# Logits (about 20 wide here) may differ by the rounding of weights and sums.
LOGIT_TOLERANCES = {"gguf": 0.25}
LOGIT_TOLERANCE = 0.01
# Here it is the weights that differ from the reference's. They may differ so many times as much as
# those of the dense model in the same format.
_FEWER_BITS = ("gguf_q8_0", "Q4_K_M")
_TIMES_DENSE = 2.0


def problems(row: Row) -> list[str]:
    """What of a row contradicts the library."""
    name = f"{row.runtime}, {row.form} of {row.checkpoint} ({row.how})"
    if row.error is not None:
        return [f"{name}: said to load, but: {row.error}"] if row.claimed else []
    differences = _all_differences(row, name)
    if not row.claimed:
        # What loads and computes something else is rightly not said to load.
        return [] if differences else [f"{name}: loads, which strucprune_core does not say"]
    return differences


def _all_differences(row: Row, name: str) -> list[str]:
    found = []
    if row.same_text_tokens is False:
        found.append(f"{name}: its tokenizer splits text differently from tokenizer.json")
    for kind, each in (("pruned", row.agreement), ("dense", row.dense_agreement)):
        if each is not None:
            found += [
                f"{name}: {words} of the {kind} model"
                for words in _differences(each, _tolerance(row, each))
            ]
    return found


def _tolerance(row: Row, found: Agreement) -> float:
    """By how much logits may differ.

    Where activations are quantised, a rounding of the last bit moves some of them to the next of
    the 256 values, and all that follows. A runtime may then differ as much as the reference does
    from itself.
    """
    kind = row.how if row.how in _FEWER_BITS else row.form
    if kind in _FEWER_BITS and row.dense_agreement is not None:
        return _TIMES_DENSE * row.dense_agreement.max_abs_logit_difference
    return max(LOGIT_TOLERANCES.get(kind, LOGIT_TOLERANCE), found.noise or 0.0)


def _differences(found: Agreement, tolerance: float) -> list[str]:
    words = []
    # Not `>`: a logit that is not a number is no agreement either.
    if not found.max_abs_logit_difference <= tolerance:
        words.append(
            f"logits are {found.max_abs_logit_difference:.3g} away from transformers', more than "
            f"{tolerance}"
        )
    # Two logits that each differ by the tolerance may change places.
    if found.parting_margin is not None and not found.parting_margin <= 2 * tolerance:
        words.append(
            f"greedy tokens part where transformers prefers its own by {found.parting_margin:.3g}, "
            f"more than {2 * tolerance}"
        )
    return words


def proved(
    rows: Sequence[Row], runtime: str, form: str, *, blocks: bool = False, heads: bool = False
) -> set[str]:
    """Families of which some result was loaded, and computed what it should.

    Args:
        rows: Of a run.
        runtime: In its newest release.
        form: Of the result.
        blocks: Only results without some blocks.
        heads: Only results with fewer heads.
    """
    return {
        row.family
        for row in rows
        if row.runtime == runtime
        and row.form == form
        and row.claimed
        and row.error is None
        and not problems(row)
        and (row.missing or not blocks)
        and (row.fewer_heads or not heads)
    }
