"""Texts that models write, as they may be shown to people. No torch."""

from __future__ import annotations

import unicodedata

# Control and format characters, private ones, surrogates, and separators of lines and paragraphs:
# they are not seen, or change how their neighbours look. A terminal obeys some of them.
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})


def visible(text: str, keeping: str = "\n\t") -> str:
    r"""A text whose unseen characters are written as escapes, as \x1b.

    It is not escaped for HTML or anything else.

    Args:
        text: Any text.
        keeping: Unseen characters that stay.
    """
    return "".join(
        each if each in keeping or unicodedata.category(each) not in _UNSEEN else _escaped(each)
        for each in text
    )


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]
