"""A job to submit: the tiny model and a text in the stack's bucket, a fresh output each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.stack import WORK_BUCKET, Stack
from strucprune_core.client import StrucPruneClient
from tests.support.jobs import weights

Spec = dict[str, Any]
MakeSpec = Callable[..., Spec]


@pytest.fixture(scope="session")
def uploaded(stack: Stack, tiny_model: Path, text_file: Path) -> str:
    """URI of a prefix with `model/` and `text.txt`."""
    s3 = stack.s3.client()
    for path in tiny_model.iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"input/model/{path.name}")
    s3.upload_file(str(text_file), WORK_BUCKET, "input/text.txt")
    return f"s3://{WORK_BUCKET}/input"


@pytest.fixture
def client(stack: Stack) -> Iterator[StrucPruneClient]:
    """A client with the stack's API key."""
    with stack.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def make_spec(uploaded: str) -> MakeSpec:
    """A function that makes job specifications."""

    def make(*, samples: int = 16, length: int = 32, **runtime: object) -> Spec:
        return {
            "model": {"uri": f"{uploaded}/model"},
            "output": {"uri_prefix": f"s3://{WORK_BUCKET}/output/{uuid4().hex}"},
            "pruning": {"sparsity": 0.3},
            "calibration": {
                "uri": f"{uploaded}/text.txt",
                "samples": samples,
                "sequence_length": length,
            },
            "evaluation": {"uri": f"{uploaded}/text.txt", "sequences": 4, "sequence_length": 64},
            "runtime": {"device": "cpu", **runtime},
        }

    return make


@pytest.fixture(scope="session")
def undisturbed(stack: Stack) -> Callable[[Spec], bytes]:
    """The weights of a job like the given one that nothing happened to, one a calibration."""
    known: dict[tuple[str, int, int], bytes] = {}

    def of(spec: Spec) -> bytes:
        text = spec["calibration"]
        like = (text["uri"], text["samples"], text["sequence_length"])
        if like not in known:
            twin = {**spec, "output": {"uri_prefix": f"{spec['output']['uri_prefix']}-twin"}}
            with stack.client() as client:
                assert client.wait(client.submit(twin).id).state == "succeeded"
            known[like] = weights(stack, twin)
        return known[like]

    return of
