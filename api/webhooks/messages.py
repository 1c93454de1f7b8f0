"""The bodies of webhooks, in the format that the job asks for.

`standard` says what happened to which job, for programs; the API has everything else. `slack` is
one line for people, in the body of Slack's incoming webhooks, which other chat systems also take.
"""

from __future__ import annotations

import json
from typing import Any

from api.event_titles import event_title
from api.jobs.instants import instant
from api.jobs.record import JobEvent, JobRecord
from strucprune_core.report.html.view import model_name
from strucprune_core.report.numbers import count, number, size
from strucprune_core.report.visible_text import visible

# Chat systems cut or refuse long messages: the shortest limit is Discord's, 2,000 characters.
_NAME_CHARACTERS = 80
_SENTENCE_CHARACTERS = 300
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# Chat systems make mentions and links of these also where they know no escapes. An unseen space
# (zero width) behind the first character prevents that and changes nothing that people see.
_BROKEN = {"@": "@\u200b", "://": ":\u200b//", "www.": "www\u200b."}


def message_body(message_format: str, name: str, record: JobRecord, event: JobEvent) -> bytes:
    """The body of the message on one event.

    Args:
        message_format: `standard` or `slack`.
        name: Of the event, such as `job.succeeded`.
        record: The job as it is now.
        event: What happened.
    """
    if message_format == "slack":
        content: dict[str, Any] = {"text": _line(record, event)}
    else:
        content = _standard(name, record, event)
    return json.dumps(content, separators=(",", ":")).encode()


def _standard(name: str, record: JobRecord, event: JobEvent) -> dict[str, Any]:
    return {
        "type": name,
        "timestamp": instant(event.at),
        "data": {
            "job_id": record.id,
            "title": event_title(event.type, event.data),
            "state": event.data.get("state"),
            "run": event.data.get("run", 1),
            "attempt": event.data.get("attempt"),
            "error": event.data.get("error"),
            "name": record.spec.get("name"),
            "labels": record.labels,
        },
    }


def _line(record: JobRecord, event: JobEvent) -> str:
    # Not validated as a `JobSpec`: a newer release may have added fields.
    spec, state, run = record.spec, event.data.get("state"), event.data.get("run", 1)
    name = spec.get("name") or model_name(spec["model"]["uri"])
    parts = [f"{_quoted(name, _NAME_CHARACTERS)} ({_wish(spec['pruning'])}): {state}."]
    # The job may have been retried since; its summary is of its newest run.
    if state == "succeeded" and record.summary and record.run == run:
        parts += _results(record.summary)
    error = event.data.get("error")
    if state == "failed" and error:
        said = [error.get("message"), error.get("remedy")]
        parts += [_quoted(each, _SENTENCE_CHARACTERS) for each in said if each]
    again = f", run {run}" if run > 1 else ""
    return " ".join([*parts, f"{record.id}{again}"])


def _wish(pruning: dict[str, Any]) -> str:
    """What the job was asked to come to."""
    if pruning.get("sizes"):
        return f"sparsities {', '.join(f'{each:g}' for each in pruning['sizes'])}"
    if pruning.get("target"):
        return _target(pruning["target"])
    if pruning.get("expert_count"):
        return f"{pruning['expert_count']} experts"
    return f"sparsity {pruning['sparsity']:g}"


def _target(target: dict[str, Any]) -> str:
    if target.get("max_perplexity_ratio"):
        return f"perplexity at most ×{target['max_perplexity_ratio']:g}"
    if target.get("parameters"):
        return f"at most {count(target['parameters'])} parameters"
    return f"at most {size(target['bytes'] or target['memory_bytes'])}"


def _results(summary: dict[str, Any]) -> list[str]:
    if "sizes" in summary:
        return [_size(each, summary["parameters"]["before"]) for each in summary["sizes"]]
    before, after = summary["parameters"]["before"], summary["parameters"]["after"]
    perplexity = summary.get("perplexity")
    return [_change(before, after, perplexity and perplexity["ratio"])]


def _size(result: dict[str, Any], before: int) -> str:
    if result["rejected"]:
        return f"{result['name']}: rejected."
    change = _change(before, result["parameters"], result["perplexity_ratio"])
    return f"{result['name']}: {change}"


def _change(before: int, after: int, ratio: float | None) -> str:
    quality = "" if ratio is None else f", perplexity ×{number(ratio)}"
    return f"{count(before)} → {count(after)} parameters{quality}."


def _quoted(text: str, most: int) -> str:
    """A text that may be anybody's, as code: nothing in it becomes a link, a mention or a style."""
    text = visible(" ".join(text.split()), keeping="")
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    text = text.replace("`", "'")
    for active, broken in _BROKEN.items():
        text = text.replace(active, broken)
    return f"`{text.translate(_ESCAPES)}`"
