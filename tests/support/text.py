"""English-like prose, made up, the same for the same seed."""

from __future__ import annotations

import random

_SUBJECTS = (
    "the miller",
    "a tall ship",
    "our neighbour",
    "the old clock",
    "every student",
    "the river",
    "a quiet engineer",
    "the committee",
)
_VERBS = ("carries", "forgets", "follows", "measures", "repairs", "remembers", "sells", "watches")
_OBJECTS = (
    "the northern bridge",
    "a box of letters",
    "seven small lamps",
    "the morning train",
    "an honest answer",
    "the price of grain",
    "its own shadow",
    "two pages of notes",
)
_ENDINGS = (
    "before the rain begins",
    "without a single word",
    "as it did in 1892",
    "although nobody asked",
    "because the road is long",
    "until the bells stop ringing",
)
_SENTENCES_PER_PARAGRAPH = 6


def make_text(paragraphs: int = 200, *, seed: int = 0) -> str:
    """Paragraphs of six sentences, separated by blank lines."""
    draw = random.Random(seed)
    return "\n\n".join(_paragraph(draw) for _ in range(paragraphs)) + "\n"


def _paragraph(draw: random.Random) -> str:
    return " ".join(_sentence(draw) for _ in range(_SENTENCES_PER_PARAGRAPH))


def _sentence(draw: random.Random) -> str:
    words = f"{draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)}"
    ending = f", {draw.choice(_ENDINGS)}" if draw.random() < 0.5 else ""
    return f"{words[0].upper()}{words[1:]}{ending}."
