"""What tokenizer_config.json of a result says, so that AutoTokenizer runs no code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strucprune_core.export.tokenizer_class import with_tokenizer_class


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "GPT2Tokenizer"),  # as AutoTokenizer takes it for the dense model
        ({"tokenizer_class": "TokenizersBackend"}, "PreTrainedTokenizerFast"),
        ({"tokenizer_class": "OwnTokenizer"}, "PreTrainedTokenizerFast"),
        (
            {"tokenizer_class": "GPT2Tokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
            "GPT2Tokenizer",
        ),
    ],
)
def test_a_class_of_transformers_is_named(settings: dict[str, Any], named: str) -> None:
    data = json.dumps({"model_max_length": 8, "bos_token": "é", **settings}).encode()
    found = json.loads(with_tokenizer_class(data, "gpt2"))
    assert found == {"model_max_length": 8, "bos_token": "é", "tokenizer_class": named}


def test_a_file_that_names_one_stays_as_it_is() -> None:
    data = b'{"tokenizer_class":   "GPT2TokenizerFast"}'
    assert with_tokenizer_class(data, "llama") is data


def test_an_unknown_architecture_gets_the_plain_class() -> None:
    found = json.loads(with_tokenizer_class(b"{}", "no-such-model"))
    assert found == {"tokenizer_class": "PreTrainedTokenizerFast"}
