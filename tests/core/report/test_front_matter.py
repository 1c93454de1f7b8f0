"""What a pruned model's card takes from the dense model's."""

from __future__ import annotations

import pytest

from strucprune_core.report.front_matter import carried_keys, front_matter

CARD = """---
license: other
license_name: own-terms
license_link: LICENSE
language: [en, de]
base_model: someone/else
model-index: [{name: x}]
pipeline_tag: text-generation
---
# A model
"""


def test_terms_and_languages_are_carried_and_nothing_else() -> None:
    assert carried_keys(CARD.encode()) == {
        "license": "other",
        "license_name": "own-terms",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "pipeline_tag": "text-generation",
    }


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"# no block",
        b"---\nlicense: [unclosed\n---\n",
        b"---\n- a list\n---\n",
        b"---\nlicense: !!python/object/apply:os.system [echo]\n---\n",
        b"---\nlicense: {nested: 1}\n---\n",
        b"---\nlicense: 2024-13-45\nlanguage: []\n",
        b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
        b"---\nlicense: mit\nfiller: " + b"x" * 2**17 + b"\n---\n",
        b"\xff\xfe---",
    ],
    ids=range(10),
)
def test_a_block_that_says_nothing_usable_is_left_out(card: bytes) -> None:
    assert carried_keys(card) == {}


def test_a_block_is_read_back_as_it_was_written() -> None:
    values = {"license": "mit: no\n---\nyes", "language": ["no", "日本"], "pipeline_tag": "---"}
    assert carried_keys(front_matter(values).encode()) == values
