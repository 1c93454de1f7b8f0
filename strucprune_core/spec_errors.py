"""What is wrong with a field of a job, in words for people. No torch.

Pydantic's own texts name its types; these name what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TEXTS: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not a field that there is",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_pattern_mismatch": "has characters that are not allowed",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}
_WITH_LIMITS: dict[str, str] = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
}
# A sentence that says what to do follows the one that says what is wrong.
_SENTENCES = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")


def problem_of(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """What is wrong, and what to do about it where the text says so.

    Args:
        error: One of `ValidationError.errors()`.
    """
    kind = error["type"]
    if kind in _TEXTS:
        return _TEXTS[kind], None
    if kind in _WITH_LIMITS:
        limits = {name: _plain(value) for name, value in error["ctx"].items()}
        return _WITH_LIMITS[kind].format(**limits), None
    wrong, *cure = _SENTENCES.split(error["msg"].removeprefix("Value error, "), maxsplit=1)
    return wrong.removesuffix("."), cure[0] if cure else None


def _plain(value: Any) -> Any:
    """10 for 10.0."""
    return f"{value:g}" if isinstance(value, float) else value
