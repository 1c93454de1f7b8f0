"""The specification on its way through JSON: what is accepted can be journalled and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from strucprune_core.spec import JobSpec


def body(**evaluation: Any) -> dict[str, Any]:
    return {
        "model": {"uri": "s3://bucket/model"},
        "output": {"uri_prefix": "s3://bucket/out"},
        "pruning": {"sparsity": 0.5},
        "calibration": {"uri": "s3://bucket/text"},
        "evaluation": {"uri": "s3://bucket/text", **evaluation},
    }


def test_a_specification_survives_its_json() -> None:
    spec = JobSpec.model_validate(body(max_perplexity_ratio=3.5))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("number", ["1e999", "Infinity", "NaN"])
def test_numbers_are_finite(number: str) -> None:
    """JSON has no infinity: it would be written as null, which no reader takes for a number."""
    text = json.dumps(body(max_perplexity_ratio=0.125)).replace("0.125", number)
    with pytest.raises(ValidationError, match="max_perplexity_ratio"):
        JobSpec.model_validate_json(text)
    with pytest.raises(ValidationError, match="max_perplexity_ratio"):
        JobSpec.model_validate(json.loads(text))
