"""What chats are told about a job: one line for people, in which no text of others is active."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from api.jobs.record import JobEvent, JobRecord
from api.jobs.state import JobState
from api.webhooks.messages import message_body
from strucprune_core.spec import JobSpec

SIZE = {
    "parameters": {"before": 134_515_008, "after": 118_590_144},
    "perplexity": {"before": 20.0, "after": 21.5, "ratio": 1.075},
}


def record(state: JobState = JobState.SUCCEEDED, run: int = 1, **spec: Any) -> JobRecord:
    summary = spec.pop("summary", None)
    job = {
        "model": {"uri": "s3://models/smollm2-135m/"},
        "output": {"uri_prefix": "s3://models/out"},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": "s3://models/text.txt"},
        **spec,
    }
    return JobRecord(
        id="job_1",
        tenant="acme",
        state=state,
        revision=1,
        fence=1,
        run=run,
        attempt=1,
        max_attempts=3,
        created_at=0.0,
        updated_at=0.0,
        fingerprint="f",
        summary=summary,
        spec=JobSpec.model_validate(job).model_dump(mode="json"),
    )


def told(job: JobRecord, state: str = "succeeded", **data: Any) -> str:
    event = JobEvent("1-0", 0.0, "state", {"state": state, "run": 1, **data})
    content = json.loads(message_body("slack", f"job.{state}", job, event))
    assert set(content) == {"text"}
    text: str = content["text"].replace("\xa0", " ")
    return text


def test_a_success() -> None:
    assert told(record(summary=SIZE)) == (
        "`smollm2-135m` (sparsity 0.3): succeeded. "
        "134.5 M → 118.6 M parameters, perplexity ×1.075. job_1"
    )
    unmeasured = {**SIZE, "perplexity": None}
    assert "118.6 M parameters. job_1" in told(record(summary=unmeasured))


def test_a_job_with_a_name() -> None:
    assert told(record(name="Nightly & co")).startswith("`Nightly &amp; co` (sparsity 0.3):")


def test_several_sizes() -> None:
    result = {"rejected": None, "parameters": 118_590_144, "perplexity_ratio": 1.075}
    sizes = [
        {**result, "name": "0.2"},
        {**result, "name": "0.9", "rejected": "perplexity", "perplexity_ratio": None},
    ]
    summary = {"parameters": {"before": 134_515_008}, "perplexity": None, "sizes": sizes}
    assert told(record(summary=summary, pruning={"sizes": [0.2, 0.9]})) == (
        "`smollm2-135m` (sparsities 0.2, 0.9): succeeded. "
        "0.2: 134.5 M → 118.6 M parameters, perplexity ×1.075. 0.9: rejected. job_1"
    )


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        ({"target": {"parameters": "120M"}}, "at most 120.0 M parameters"),
        ({"target": {"bytes": 240_000_000}}, "at most 240 MB"),
        ({"target": {"memory_bytes": 10**9}}, "at most 1 GB"),
        ({"structures": ["experts"], "expert_count": 6}, "6 experts"),
    ],
)
def test_what_was_asked(pruning: dict[str, Any], words: str) -> None:
    assert f"({words})" in told(record(pruning=pruning))


def test_a_search() -> None:
    job = record(
        pruning={"target": {"max_perplexity_ratio": 1.1}},
        evaluation={"uri": "s3://models/text.txt"},
    )
    assert "(perplexity at most ×1.1)" in told(job)


def test_a_run_that_was_retried_since_shows_no_results_of_another() -> None:
    later = record(summary=SIZE, run=2)
    assert told(later) == "`smollm2-135m` (sparsity 0.3): succeeded. job_1"
    assert told(later, run=2).endswith("×1.075. job_1, run 2")


HOSTILE = (
    "<!channel> @channel @here @everyone <@U123> <#C1> <https://evil.example|bank> "
    "https://evil.example www.evil.example [x](http://evil.example) `https://evil.example` "
    "*b* _i_ &lt;!here&gt; \u202eabc\x1b[31m\nnew line"
)


@pytest.mark.parametrize("place", ["model", "name", "message", "remedy"])
def test_no_text_of_others_is_active(place: str) -> None:
    """Slack obeys what stands in < >, other systems also @ and bare links, none inside code."""
    error = {"code": "x", "message": "m", "remedy": "r"}
    if place in error:
        error[place] = HOSTILE
    job = record(JobState.FAILED)
    # As the ledger may hold it, whatever the API refuses today.
    spec = {**job.spec, "name": HOSTILE if place == "name" else None}
    if place == "model":
        spec["model"] = {"uri": f"s3://models/{HOSTILE.replace('/', '|')} ://x"}
    text = told(job.model_copy(update={"spec": spec}), "failed", error=error)
    assert not re.search(r"[<>\n\x1b\u202e]|&(?!amp;|lt;|gt;)", text)
    assert not re.search(r"@\w|://|www\.", text)
    quoted = re.findall(r"`[^`]*`", text)
    assert len(quoted) == 3
    # Nothing but our own words stands outside.
    outside = re.sub(r"`[^`]*`", "", text)
    assert outside == " (sparsity 0.3): failed.   job_1"


def test_long_texts_are_cut() -> None:
    error = {"code": "x", "message": "&" * 100_000, "remedy": "word " * 100_000}
    text = told(record(JobState.FAILED), "failed", error=error)
    assert len(text.replace("&amp;", "&")) < 800
