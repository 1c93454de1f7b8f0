"""README.md of a result: the model card that hubs and people read. No torch.

It holds no times, so it is the same bytes in every run of a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from strucprune_core.report.document import Loading, Report, TaskMetric, TasksSummary
from strucprune_core.report.front_matter import front_matter

# A hub knows four relations: adapter, merge, quantized, finetune. No other covers weights of the
# base model that were cut and solved anew; it is also what a hub takes where a card says nothing.
BASE_MODEL_RELATION = "finetune"

_BLOCKS = {"attention_blocks": "attention", "ffn_blocks": "the FFN", "layers": "all"}

MARK = "<!-- This card was written by StrucPrune. Remove this line to keep your own changes. -->"
"""Publishing to a hub replaces a README.md that holds this line, and no other."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says that a report does not.

    Attributes:
        base_model: `org/name` on a hub; None if the model came from elsewhere.
        carried: Values of the dense model's card that still hold.
        terms: Names of the licence and notice files that were copied.
    """

    base_model: str | None
    carried: dict[str, Any]
    terms: tuple[str, ...]


def model_card(report: Report, facts: CardFacts) -> str:
    """The card of a result, Markdown with a YAML block."""
    name = facts.base_model or f"A {report.model.architecture} model"
    parts = [
        front_matter(_metadata(report, facts)) + MARK,
        f"# {name}, pruned by {report.sparsity.reached:.0%}",
        _opening(report, facts),
        "## What was removed\n\n" + _removed(report),
        "## Figures\n\n" + _figures(report),
        "## Loading\n\n" + "\n\n".join(_loading(each) for each in report.loading),
        "## Terms\n\n" + _terms(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(report: Report, facts: CardFacts) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if facts.base_model is not None:
        values["base_model"] = facts.base_model
        values["base_model_relation"] = BASE_MODEL_RELATION
    values["library_name"] = "transformers"
    values |= {"pipeline_tag": "text-generation", **facts.carried}
    values["tags"] = ["strucprune", "pruning", "structured-pruning"]
    if report.perplexity is not None:
        values["metrics"] = ["perplexity"]
    return values


def _opening(report: Report, facts: CardFacts) -> str:
    base = facts.base_model or f"a dense {report.model.architecture} model"
    trained = report.distillation is not None and report.distillation.status == "accepted"
    then = " It was then trained to match the dense model." if trained else ""
    return (
        f"This is {base} without {report.sparsity.parameters_removed:,} of its "
        f"{report.before.parameters:,} parameters, made by StrucPrune. Structures that add little "
        "to the output were removed whole, and the weights that stay were adjusted on calibration "
        f"text.{then}"
    )


def _removed(report: Report) -> str:
    before, after = report.before, report.after
    counts = (
        ("FFN channels", before.ffn_channels, after.ffn_channels),
        ("query heads", before.query_heads, after.query_heads),
        ("key-value heads", before.kv_heads, after.kv_heads),
        ("experts", before.experts, after.experts),
    )
    lines = ["| | dense | pruned |", "|---|---|---|"]
    lines += [f"| {name} | {was:,} | {now:,} |" for name, was, now in counts if was != now]
    blocks = [
        f"{_BLOCKS[each.structure]} of layer {each.layer}"
        for each in sorted(report.blocks, key=lambda each: (each.layer, each.structure))
    ]
    text = (
        f"\n\nRemoved whole, by the dense model's numbers: {', '.join(blocks)}." if blocks else ""
    )
    return "\n".join(lines) + text


def _figures(report: Report) -> str:
    before, after = report.before, report.after
    rows: list[tuple[str, str, str]] = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("bytes of weights", f"{before.bytes:,}", f"{after.bytes:,}"),
        ("operations for a token", f"{before.flops_per_token:,}", f"{after.flops_per_token:,}"),
    ]
    if before.kv_cache_bytes_per_token is not None and after.kv_cache_bytes_per_token is not None:
        cache = (before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token)
        rows.append(("bytes of keys and values for a token", f"{cache[0]:,}", f"{cache[1]:,}"))
    found = report.perplexity
    if found is not None:
        rows.append(("perplexity", f"{found.before:.2f}", f"{found.after:.2f}"))
    rows += [
        (f"perplexity of `{each.folder}`, weights in 8 bits", "", f"{each.perplexity:.2f}")
        for each in report.exports
        if each.perplexity is not None
    ]
    tried = "No other task was tried."
    if report.tasks is not None:
        rows += _task_rows(report.tasks)
        tried = (
            f"Tasks are of lm-evaluation-harness {report.tasks.harness}, with its standard errors."
        )
    lines = ["| | dense | pruned |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    note = "Perplexity was not measured."
    if found is not None:
        note = (
            f"Perplexity is of {found.tokens:,} tokens of one text (SHA-256 "
            f"{found.text_sha256[:16]}), in windows of {found.sequence_length:,}."
        )
    return "\n".join(lines) + f"\n\n{note} {tried} `report.html` shows every layer."


def _task_rows(tasks: TasksSummary) -> list[tuple[str, str, str]]:
    return [
        (
            f"{dense.task}, {was.name} ({dense.num_fewshot}-shot, {dense.documents:,} documents)",
            _metric(was),
            _metric(now),
        )
        for dense, pruned in zip(tasks.dense, tasks.pruned, strict=True)
        for was, now in zip(dense.metrics, pruned.metrics, strict=True)
    ]


def _metric(metric: TaskMetric) -> str:
    error = metric.standard_error
    return f"{metric.value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _loading(way: Loading) -> str:
    return f"With {way.runtime} ({way.note}):\n\n```{way.language}\n{way.example}\n```"


def _terms(facts: CardFacts) -> str:
    named = facts.carried.get("license")
    licence = "The dense model's card names no licence."
    if isinstance(named, str):
        licence = f"The dense model's licence is `{facts.carried.get('license_name', named)}`."
    if not facts.terms:
        return f"{licence} A pruned model is made from the dense one, whose terms apply to it."
    files = ", ".join(f"[{name}]({name})" for name in facts.terms)
    return f"{licence} Its files are included, and apply to this model: {files}."
