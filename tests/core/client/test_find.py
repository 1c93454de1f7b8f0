"""Which job is meant by the beginning of an id."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from strucprune_core.client import AmbiguousId, NoSuchId, find
from strucprune_core.client.flow import Call, Retries
from strucprune_core.errors import InvalidSpec

FIRST, SECOND, THIRD = ("job_" + digits.ljust(32, "0") for digits in ("abcd1", "abcd2", "ef01"))


def job(name: str) -> dict[str, Any]:
    return {"id": name, "state": "queued", "created_at": "2026-01-01T00:00:00Z", "spec": {}}


def asked(beginning: str, pages: list[list[str]]) -> tuple[str, int]:
    """The id that is found, and how many pages were read."""
    flow, read, answer = find.find(Retries(1.0), beginning), 0, None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration as end:
            return end.value, read
        assert isinstance(step, Call)
        assert step.params.get("cursor", "0") == str(read)
        following = str(read + 1) if read + 1 < len(pages) else None
        page = {"data": [job(name) for name in pages[read]], "next_cursor": following}
        answer, read = httpx.Response(200, content=json.dumps(page)), read + 1


@pytest.mark.parametrize("beginning", ["abcd1", "job_abcd1", FIRST[:-1]])
def test_a_beginning_of_one_id(beginning: str) -> None:
    assert asked(beginning, [[THIRD, SECOND], [FIRST]]) == (FIRST, 2)


def test_a_whole_id_is_not_looked_for() -> None:
    assert asked(FIRST, []) == (FIRST, 0)


def test_what_is_no_id_is_left_to_the_service() -> None:
    assert asked("run-42", []) == ("run-42", 0)


def test_several_are_refused_by_name() -> None:
    with pytest.raises(AmbiguousId) as raised:
        asked("abcd", [[FIRST, THIRD], [SECOND]])
    assert raised.value.message.splitlines()[1:] == [f"{FIRST} (queued)", f"{SECOND} (queued)"]


def test_none() -> None:
    with pytest.raises(NoSuchId, match="None of your jobs"):
        asked("9999", [[FIRST], [THIRD]])


@pytest.mark.parametrize("beginning", ["", "job_", "job_abc", "abc"])
def test_too_short(beginning: str) -> None:
    with pytest.raises(InvalidSpec, match="too short"):
        asked(beginning, [])


def test_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "MOST_JOBS", 2)
    with pytest.raises(NoSuchId, match="newest 2 jobs"):
        asked("ef01", [[FIRST], [SECOND], [THIRD]])


def test_many_are_counted() -> None:
    names = [f"job_abcd{number:028x}" for number in range(11)]
    with pytest.raises(AmbiguousId) as raised:
        asked("abcd", [names])
    assert raised.value.message.endswith(f"{names[7]} (queued)\nand 3 more")
