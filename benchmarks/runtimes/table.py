"""Rows of the result, and the Markdown table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.runtimes.commands import Command
from benchmarks.runtimes.comparison import Agreement, Gain, Rates
from benchmarks.runtimes.protocol import Speed

_HEADER = "| runtime | given | loads | greedy tokens as transformers | logits differ by | weights |"
_SPEED_HEADER = "| runtime | given | prefill, tokens/s | decode, tokens/s |"
_ARROW = " → "


@dataclass(frozen=True, slots=True)
class Row:
    """What one case gave.

    Attributes:
        runtime: Its name.
        versions: Of it and its parts.
        form: Of the result.
        checkpoint: Which pruned model.
        family: Of the model.
        tiny: Whether it is a tiny random one, or else SmolLM2-135M.
        missing: Blocks that some of its layers do not have: "attention", "ffn".
        fewer_heads: Whether some of its attention heads were removed.
        calibration_tokens: That it was pruned with.
        threads: Of the runtime.
        how: With the checkpoint's own code or without.
        claimed: Whether the library says that it loads.
        error: Why it does not load; None if it does.
        dense_bytes: Weights of the dense model in the same form.
        pruned_bytes: Weights of the pruned one.
        dense_agreement: With transformers on the dense model.
        agreement: With transformers on the pruned one; None if this row is what others are
            compared with.
        same_text_tokens: Whether the file's own tokenizer splits a text as tokenizer.json does;
            None if it has none.
        dense: Speed of the dense model.
        pruned: Speed of the pruned one.
        gain: How many times as fast the pruned one is, round by round.
        speeds: What both were measured from.
    """

    runtime: str
    versions: Mapping[str, str]
    form: str
    checkpoint: str
    family: str
    tiny: bool
    missing: Sequence[str]
    fewer_heads: bool
    calibration_tokens: int
    threads: int
    how: str
    claimed: bool
    error: str | None
    dense_bytes: int
    pruned_bytes: int
    dense_agreement: Agreement | None
    agreement: Agreement | None
    same_text_tokens: bool | None
    dense: Rates | None
    pruned: Rates | None
    gain: Gain | None
    speeds: Mapping[str, Speed]


def markdown(rows: Sequence[Row]) -> str:
    """The table of what loaded, and how exactly it computes."""
    return _table(_HEADER, [[*_named(row), *_loaded(row)] for row in rows])


def speeds_table(rows: Sequence[Row]) -> str:
    """The table of speeds, dense and pruned, of the rows that were timed."""
    return _table(_SPEED_HEADER, [[*_named(row), *_speeds(row)] for row in rows if row.gain])


def commands_table(commands: Sequence[Command]) -> str:
    """The commands of model cards, and how they ended."""
    cells = [
        [f"`{each.checkpoint}`", f"`{each.command}`", str(each.exit_code)] for each in commands
    ]
    return _table("| card of | command | exit code |", cells)


def _table(header: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def _named(row: Row) -> list[str]:
    name = row.runtime.partition(" ")[0]  # Without the release that a case asks for.
    return [f"{name} {next(iter(row.versions.values()), '')}".strip(), _given(row)]


def _loaded(row: Row) -> list[str]:
    if row.error is not None:
        return [f"no: {_short(row.error)}", "", "", ""]
    sizes = (f"{row.dense_bytes / 1e6:.0f}", f"{row.pruned_bytes / 1e6:.0f} MB")
    return ["yes", *_agreement(row.agreement), _ARROW.join(sizes)]


def _given(row: Row) -> str:
    """The form; in brackets what else tells rows of one form apart."""
    details = [] if row.checkpoint in (row.form, "per_layer") else [row.checkpoint]
    if row.how != "plain":
        details.append(row.how)
    return f"`{row.form}`" + (f" ({', '.join(details)})" if details else "")


def _short(error: str, limit: int = 160) -> str:
    one_line = " ".join(error.split()).replace("|", "/")
    return one_line if len(one_line) <= limit else one_line[: limit - 2] + " …"


def _agreement(found: Agreement | None) -> tuple[str, str]:
    if found is None:
        return "reference", "reference"
    same = f"{found.same_tokens} of {found.tokens}"
    if found.parting_margin is not None:
        same += f" (near tie: {found.parting_margin:.1g})"
    noise = "" if found.noise is None else f" (own noise: {found.noise:.1g})"
    return same, f"{found.max_abs_logit_difference:.1g}{noise}"


def _speeds(row: Row) -> tuple[str, str]:
    if row.dense is None or row.pruned is None or row.gain is None:
        return "", ""
    return (
        f"{row.dense.prefill_tokens_per_second:.0f}{_ARROW}"
        f"{row.pruned.prefill_tokens_per_second:.0f} ({row.gain.prefill:.2f}x)",
        f"{row.dense.decode_tokens_per_second:.1f}{_ARROW}"
        f"{row.pruned.decode_tokens_per_second:.1f} ({row.gain.decode:.2f}x)",
    )
