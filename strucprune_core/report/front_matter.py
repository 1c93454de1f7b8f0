"""The YAML block at the top of a model card, read without trusting it. No torch."""

from __future__ import annotations

import re
from typing import Any

import yaml

# What says how a model may be used, and in which languages.
CARRIED = (
    "license",
    "license_name",
    "license_link",
    "extra_gated_prompt",
    "language",
    "pipeline_tag",
)
_BLOCK = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
_MAX_CHARACTERS = 2**16
_MAX_VALUES = 200


def carried_keys(card: bytes) -> dict[str, Any]:
    """What a pruned model's card takes over from the dense model's.

    Args:
        card: README.md.

    Returns:
        Those of `CARRIED` that hold a text or a list of texts; nothing where the block is no YAML.
    """
    found = _BLOCK.match(card.decode("utf-8", errors="replace").lstrip("\ufeff"))
    if found is None or len(found[1]) > _MAX_CHARACTERS:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: values[key] for key in CARRIED if _is_text(values.get(key))}


def _is_text(value: Any) -> bool:
    """Whether a value is a text, or a list of some."""
    if isinstance(value, list):
        return 0 < len(value) <= _MAX_VALUES and all(isinstance(each, str) for each in value)
    return isinstance(value, str)


def front_matter(values: dict[str, Any]) -> str:
    """A block with these values, in their order."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"
