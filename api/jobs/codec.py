"""The form of jobs in Redis: hashes of text, JSON for dictionaries, '' for None."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.jobs.record import (
    HeldJob,
    JobEvent,
    JobRecord,
    NewJob,
    Outlook,
    PredictedTime,
    QueuePlace,
    Times,
    WorkerRecord,
)

# Prefix of every key.
NAMESPACE = "strucprune"
LUA = Path(__file__).parent / "lua"
# The script whose answer `decode_jobs` reads.
READ_JOBS = (LUA / "read_jobs.lua").read_text()

_ABOUT_THE_JOB = frozenset({"job_id", "part", "phase", "unit"})
_JSON_FIELDS = ("progress", "error", "summary", "labels", "spec", "plan", "predicted")


def encode(value: Mapping[str, Any] | None) -> str:
    """JSON, or '' for None, since a Redis hash has no null."""
    return "" if value is None else json.dumps(value, separators=(",", ":"))


def encode_job(new: NewJob) -> list[str]:
    """The hash of a new job: names and values, alternating."""
    fields: list[str] = []
    for name, value in new.model_dump(mode="json").items():
        text = encode(value) if name in _JSON_FIELDS else str("" if value is None else value)
        fields += [name, text]
    return fields


def decode_jobs(text: str) -> list[JobRecord | None]:
    """The jobs in an answer of `READ_JOBS`, in the order of the ids; None where there is none."""
    return [decode_job(flat) if flat else None for flat in json.loads(text)]


def decode_event(entry_id: str, entry: Mapping[str, str]) -> JobEvent:
    """An entry of a job's stream of events."""
    return JobEvent(entry_id, float(entry["at"]), entry["type"], json.loads(entry["data"]))


def decode_worker(name: str, busy: bool, flat: list[str]) -> WorkerRecord:
    """A worker from its hash; without its job if it is not known to be busy."""
    present: dict[str, Any] = {
        key: text for key, text in zip(flat[::2], flat[1::2], strict=True) if text != ""
    }
    if "rates" in present:
        present["rates"] = json.loads(present["rates"])
    if not busy:
        present = {key: text for key, text in present.items() if key not in _ABOUT_THE_JOB}
    return WorkerRecord.model_validate({"name": name, **present})


def decode_outlook(text: str) -> Outlook | None:
    """The answer of `outlook`."""
    if not text:
        return None
    found = json.loads(text)
    return Outlook(
        QueuePlace(**found["place"]),
        [_times(each) for each in found.get("waiting", ())],
        [
            HeldJob(_times(predicted), json.loads(progress) if progress else None)
            for predicted, progress in found.get("held", ())
        ],
    )


def _times(text: str) -> Times:
    return {
        name: PredictedTime.model_validate(each) for name, each in json.loads(text or "{}").items()
    }


def decode_job(flat: list[str]) -> JobRecord:
    """A job from its hash: names and values, alternating."""
    hashed = zip(flat[::2], flat[1::2], strict=True)
    present: dict[str, Any] = {name: text for name, text in hashed if text != ""}
    for name in _JSON_FIELDS:
        if name in present:
            present[name] = json.loads(present[name])
    return JobRecord.model_validate(present)
