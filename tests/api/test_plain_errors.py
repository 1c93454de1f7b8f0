"""Whatever is wrong with a request, the problem says it in plain English, with the cure."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from api.problems import PATTERNS
from api.request import JobRequest
from strucprune_core.plain_errors import plain_message, plain_messages
from tests.support.routes import JOBS

GOOD: dict[str, Any] = {
    "model": {"uri": "s3://bucket/model"},
    "output": {"uri_prefix": "s3://bucket/out"},
    "pruning": {"sparsity": 0.3},
    "calibration": {"uri": "s3://bucket/text"},
    "evaluation": {"uri": "s3://bucket/text"},
}
BAD: list[Any] = [
    *(None, "", "x", "s3://", -1, 0, 1.5, 10**30, True, [], {}),
    *(["x"], [1, 2], {"x": 1}, float("nan"), "\ud800", "x" * 5000),
]
# Words of pydantic, and of Python.
_TECHNICAL = re.compile(
    r"Input should|Value error|Field required|valid (string|integer|number|boolean)|Tuple|parse|"
    r"NoneType|regex|pattern|\^|validation error"
)


def _fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, (*above, name))


def _with(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(GOOD)
    section = body
    for name in path[:-1]:
        section = section.setdefault(name, {})
    section[path[-1]] = value
    return body


@pytest.mark.parametrize("path", [*_fields(JobRequest)], ids=".".join)
def test_a_wrong_value_of_any_field(path: tuple[str, ...]) -> None:
    for value in BAD:
        try:
            JobRequest.model_validate(json.loads(json.dumps(_with(path, value))))
        except ValidationError as error:
            for item in error.errors():
                if item["type"] != "extra_forbidden":
                    _is_plain(plain_message(item, PATTERNS))


def _is_plain(message: str) -> None:
    assert not _TECHNICAL.search(message), message
    assert message.endswith((".", "?")), message
    assert "The documentation lists" not in message, message  # what is left when nobody knows more


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ([], "", "It must be an object"),
        ({**GOOD, "model": "s3://bucket/model"}, "/model", "It must be an object"),
        ({**GOOD, "pruning": {"sparsity": "much"}}, "/pruning/sparsity", "a number, like 0.3"),
        ({**GOOD, "pruning": {}}, "/pruning/sparsity", "This is required. Add it."),
        ({**GOOD, "runtime": {"max_workers": 1.5}}, "/runtime/max_workers", "leave the fraction"),
        ({**GOOD, "runtime": {"device": "gpu"}}, "/runtime/device", "one of these: 'auto'"),
        ({**GOOD, "runtime": {"device": "cuda:x"}}, "/runtime/device", "'cuda:1'"),
        ({**GOOD, "extends": "mine"}, "/extends", "job_ and 32 hexadecimal digits"),
        ({**GOOD, "labels": {"team": 1}}, "/labels/team", "Write it in quotes"),
        ({**GOOD, "notifications": {}}, "/notifications/webhook_url", "This is required"),
    ],
)
def test_a_body_is_answered_in_plain_english(
    client: TestClient, body: Any, pointer: str, words: str
) -> None:
    answer = client.post(JOBS, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "params", "words"),
    [
        (JOBS, {"limit": 0}, "at least 1"),
        (JOBS, {"limit": "many"}, "a whole number"),
        (JOBS, {"label": "team"}, "name=value"),
        (JOBS, {"state": "sleeping"}, "one of these: 'queued'"),
        (JOBS, {"created_after": "5"}, "2026-01-31T12:00:00Z"),
        (JOBS, {"created_after": "2026-01-31T12:00:00"}, "no offset"),
        (JOBS, {"created_after": "2026-13-31T12:00:00Z"}, "2026-01-31T12:00:00Z"),
        (f"{JOBS}/job_{'0' * 32}/events", {"after": "("}, "id of an event"),
    ],
)
def test_a_parameter_is_answered_in_plain_english(
    client: TestClient, path: str, params: dict[str, Any], words: str
) -> None:
    answer = client.get(path, params=params)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["parameter"] == next(iter(params))
    assert words in error["detail"]
    _is_plain(error["detail"])


def test_several_errors_are_one_line() -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({**GOOD, "model": {}, "labels": 3})
    assert plain_messages(caught.value.errors()) == (
        "model.uri: This is required. Add it. labels: It must be an object. "
        'Write names and values in braces: {"name": "value"}.'
    )


def test_what_nobody_has_thought_of_is_not_technical_either() -> None:
    message = plain_message({"type": "frozen_set_type", "msg": "Input should be a frozenset"})
    assert message.startswith("This value cannot be used here.")
