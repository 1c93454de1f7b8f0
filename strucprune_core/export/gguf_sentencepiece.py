"""A SentencePiece tokenizer (Llama 2, Mistral) in GGUF's terms. No torch, no gguf.

Such a tokenizer.json is BPE with byte fallback: `▁` stands for a space, and characters without a
piece become bytes. GGUF has scores instead of merges: of all neighbours that form a piece together,
a runtime joins those with the highest score first. That equals BPE by merges exactly if every two
pieces that form a third are a merge, and the merges into one piece are consecutive. Both are
checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from strucprune_core.export.tokenizer_json import steps, unsupported

SPACE = "▁"
# The longest piece that SentencePiece learns by default has 16 characters.
MAX_PIECE_CHARACTERS = 128
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def byte_tokens(tokens: Sequence[str]) -> frozenset[str]:
    """The tokens of the 256 bytes.

    Raises:
        InvalidSpec: one is missing.
    """
    expected = [f"<0x{byte:02X}>" for byte in range(256)]
    missing = set(expected).difference(tokens)
    if missing:
        raise unsupported(f"byte fallback, but no token {min(missing)}")
    return frozenset(expected)


def puts_space_first(raw: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space that is not in it.

    GGUF does not distinguish `first` (only the beginning of a text) and `always` (after every
    special token, too), and neither do the files that models are published in.

    Args:
        raw: The tokenizer.json.

    Raises:
        InvalidSpec: text is changed in a way that GGUF cannot express.
    """
    normalisers = steps(raw.get("normalizer"), "normalizers")
    splits = steps(raw.get("pre_tokenizer"), "pretokenizers")
    if not splits and normalisers in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(normalisers) == 2
    whole = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if not normalisers and len(splits) == 1 and whole.items() <= splits[0].items():
        scheme = splits[0].get("prepend_scheme")
        if scheme in ("first", "always", "never"):
            return bool(scheme != "never")
    raise unsupported("byte fallback and such a normalizer or pre_tokenizer")


def piece_scores(
    tokens: Sequence[str], pieces: Iterable[str], merges: Sequence[tuple[str, str]]
) -> list[float]:
    """Scores by which a runtime joins pieces as the merges would.

    Args:
        tokens: Texts by id.
        pieces: Those that stand for text: not control tokens, bytes and the like.
        merges: Pairs, the first is merged first.

    Returns:
        By id: minus the rank of the token's merge, below all ranks if it has none.

    Raises:
        InvalidSpec: no scores are equivalent to the merges.
    """
    known = set(pieces)
    groups = [joined for joined, _ in groupby(left + right for left, right in merges)]
    ranks = {joined: rank for rank, joined in enumerate(groups)}
    if len(ranks) != len(groups):
        raise unsupported("byte fallback and merges that are not in the order of their pieces")
    listed = set(merges)
    for piece in known:
        if len(piece) > MAX_PIECE_CHARACTERS:
            raise unsupported(f"a piece of more than {MAX_PIECE_CHARACTERS} characters")
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if known.issuperset(pair) and pair not in listed:
                raise unsupported("byte fallback and fewer merges than its pieces allow")
    return [-float(ranks.get(token, len(ranks))) for token in tokens]
