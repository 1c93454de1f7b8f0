"""Texts of models as people see them: nothing that hides, and nothing that a terminal obeys."""

from __future__ import annotations

import pytest

from strucprune_core.report.visible_text import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, naïve 東京 🙂", "plain text, naïve 東京 🙂"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x1b[2J\x07\x00", r"\x1b[2J\x07\x00"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\u2028line\x85", r"\u2028line\x85"),
        ("\ue000\U000f0000\ud800", r"\ue000\U000f0000\ud800"),
        ("\\x1b", "\\x1b"),
    ],
)
def test_unseen_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_line_breaks_too_where_there_is_one_line() -> None:
    assert visible("a\nb\r", keeping="") == r"a\nb\r"
