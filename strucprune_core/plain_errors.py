"""What is wrong with a value, in plain English with the cure, instead of pydantic's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# By pydantic's type of the error; names in braces come from its context.
_MESSAGES: dict[str, str] = {
    "extra_forbidden": "It is no field that there is. Correct its name, or leave it out.",
    "missing": "This is required. Add it.",
    "string_type": "It must be text. Write it in quotes.",
    "int_type": "It must be a whole number. Write it without quotes, like 4.",
    "int_parsing": "It must be a whole number, like 4.",
    "int_parsing_size": "It must be a smaller number.",
    "int_from_float": "It must be a whole number: leave the fraction out.",
    "float_type": "It must be a number. Write it without quotes, like 0.3.",
    "float_parsing": "It must be a number, like 0.3.",
    "finite_number": "It must be a finite number, like 0.3.",
    "bool_type": "It must be true or false. Write it without quotes.",
    "bool_parsing": "It must be true or false.",
    "dict_type": 'It must be an object. Write names and values in braces: {{"name": "value"}}.',
    "model_type": 'It must be an object. Write names and values in braces: {{"name": "value"}}.',
    "model_attributes_type": "It must be an object. Write names and values in braces: "
    '{{"name": "value"}}.',
    "list_type": 'It must be a list. Write values in brackets: ["a", "b"].',
    "tuple_type": 'It must be a list. Write values in brackets: ["a", "b"].',
    "literal_error": "It must be one of these: {expected}.",
    "enum": "It must be one of these: {expected}.",
    "greater_than": "It must be greater than {gt}.",
    "greater_than_equal": "It must be at least {ge}.",
    "less_than": "It must be less than {lt}.",
    "less_than_equal": "It must be at most {le}.",
    "multiple_of": "It must be a multiple of {multiple_of}.",
    "too_short": "It has {actual_length} entries; give at least {min_length}.",
    "too_long": "It has more than {max_length} entries; give at most so many.",
    "string_too_short": "It must have at least {min_length} characters.",
    "string_too_long": "It must have at most {max_length} characters.",
    "datetime_type": "Write a time like 2026-01-31T12:00:00Z.",
    "datetime_parsing": "Write a time like 2026-01-31T12:00:00Z.",
    "datetime_from_date_parsing": "Write a time like 2026-01-31T12:00:00Z.",
    "datetime_object_invalid": "Write a time like 2026-01-31T12:00:00Z.",
    "timezone_aware": "The time has no offset. Write it like 2026-01-31T12:00:00Z.",
    "string_unicode": "It holds characters that are no text.",
}
# A sentence that says what to do follows the one that says what is wrong.
_SENTENCES = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_OTHERWISE = "This value cannot be used here. The documentation lists the fields and their values."


def plain_message(error: Mapping[str, Any], patterns: Mapping[str, str] | None = None) -> str:
    """The message of one error of a `ValidationError`: what is wrong, and the cure.

    Args:
        error: An item of `errors()`. Messages of this project's own checks stay as they are.
        patterns: What to write where a text must match a regular expression.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        own = str(error["msg"]).partition(", ")[2]
        return own if own.endswith((".", "?")) else f"{own}."
    if kind == "string_pattern_mismatch":
        return (patterns or {}).get(context.get("pattern", ""), _OTHERWISE)
    shown = {name: _shown(value) for name, value in context.items()}
    return _MESSAGES[kind].format(**shown) if kind in _MESSAGES else _OTHERWISE


def wrong_and_cure(
    error: Mapping[str, Any], patterns: Mapping[str, str] | None = None
) -> tuple[str, str | None]:
    """The same in two: what is wrong, to go on after the field's name, and the cure if it is said.

    Args:
        error: As of `plain_message`.
        patterns: As of `plain_message`.
    """
    wrong, *cure = _SENTENCES.split(plain_message(error, patterns), maxsplit=1)
    return wrong.removeprefix("It ").removesuffix("."), cure[0] if cure else None


def plain_messages(errors: list[Mapping[str, Any]] | list[Any]) -> str:
    """Several messages in one line, each after the dotted name of its field."""
    return " ".join(f"{'.'.join(map(str, each['loc']))}: {plain_message(each)}" for each in errors)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
