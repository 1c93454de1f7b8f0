"""Turns a tokenizer.json, which is not trusted, into a GGUF vocabulary. No torch, no gguf.

GGUF has a field for each part of a byte-level BPE tokenizer, but names the rule that splits text
before BPE only (`tokenizer.ggml.pre`). A tokenizer gets a name if its tokenizer.json has exactly
the structure that runtimes implement under that name. Any other tokenizer is refused, because a
runtime would silently cut texts in other places than the model was trained on. SentencePiece's
parts are in gguf_sentencepiece.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from strucprune_core.calibration.tokenizer_config import read_tokenizer_config
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.errors import InvalidCheckpoint, ObjectNotFound
from strucprune_core.export.gguf_sentencepiece import (
    byte_tokens,
    piece_scores,
    puts_space_first,
)
from strucprune_core.export.tokenizer_json import (
    TOKENIZER,
    as_list,
    as_object,
    as_text,
    as_token_id,
    malformed,
    steps,
    unsupported,
)
from strucprune_core.storage.store import Readable

MAX_TOKENIZER_BYTES = 64 << 20
_MAX_DEPTH = 16

# Kinds of tokens as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_APOSTROPHES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALISED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
# (pattern, whether a piece that is a token stays whole): the name under which runtimes do this.
_SPLITS: Mapping[tuple[str, bool], str] = {
    (
        _APOSTROPHES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _PUNCTUATION_AND_SPACE,
        True,
    ): "llama-bpe",
    (
        _APOSTROPHES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _PUNCTUATION_AND_SPACE,
        False,
    ): "qwen2",
    (
        _CAPITALISED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        True,
    ): "tekken",
}


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a text becomes tokens.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: How text is split before BPE; SentencePiece does not split.
        merges: Pairs of byte-level BPE, the first is merged first; SentencePiece has none.
        scores: Of SentencePiece's tokens, the highest is formed first; byte-level BPE has none.
        space_first: Whether a text begins with a space that is not in it.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_first: bool = False


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """A vocabulary in GGUF's terms (`tokenizer.ggml.*`).

    Attributes:
        splitting: How a text becomes tokens.
        tokens: Texts by id; those of byte-level BPE in its alphabet.
        token_types: Kind of each token.
        special_ids: Ids by GGUF's names ("bos", "eos", "unknown", "separator", "padding").
        add_bos: Whether a text begins with `bos`.
        add_eos: Whether a text ends with `eos`.
        chat_template: Jinja source, None if the model has none.
    """

    splitting: Splitting
    tokens: Sequence[str]
    token_types: Sequence[int]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_vocabulary(
    store: Readable, files: Collection[str], config: Mapping[str, Any], vocab_size: int
) -> GgufVocabulary:
    """Read a model's tokenizer files.

    Args:
        store: The model.
        files: Names of its side files that exist.
        config: Its config.json.
        vocab_size: Rows of its embedding; ids that the tokenizer does not use get fillers.

    Raises:
        InvalidSpec: GGUF runtimes have no such tokenizer; names the field `pruning.exports`.
        InvalidCheckpoint: a file is too large, malformed, or contradicts another.
        StorageError: the store refused or failed.
    """
    raw = _read(store)
    model = as_object(raw.get("model"), "model")
    _check_model(model)
    vocabulary = _vocabulary(model, vocab_size)
    added = _added_tokens(raw, vocab_size)
    tokens, kinds = _tokens(vocabulary, added, vocab_size)
    if model.get("byte_fallback"):
        splitting, kinds = _sentencepiece(raw, tokens, kinds)
    else:
        merges = [" ".join(pair) for pair in _merges(model)]
        splitting = Splitting("gpt2", _pre_tokenizer(raw), merges)
    settings = read_tokenizer_config(store, files)
    ids = {text: number for number, text in enumerate(tokens)}
    special = _special_ids(settings.special_tokens, ids, config, vocab_size)
    before, after = _surroundings(raw.get("post_processor"), raw)
    return GgufVocabulary(
        splitting=splitting,
        tokens=tokens,
        token_types=kinds,
        special_ids=special,
        add_bos=_adds(before, special, "bos"),
        add_eos=_adds(after, special, "eos"),
        chat_template=settings.chat_template,
    )


def _read(store: Readable) -> dict[str, Any]:
    info = store.stat(TOKENIZER)
    if info is None:
        raise ObjectNotFound(f"there is no {TOKENIZER} under {store.uri}")
    if info.size_bytes > MAX_TOKENIZER_BYTES:
        raise InvalidCheckpoint(
            f"{TOKENIZER} is larger than {MAX_TOKENIZER_BYTES} bytes",
            remedy="Leave 'gguf' out of pruning.exports.",
        )
    data = bytes(store.read(TOKENIZER, 0, info.size_bytes))
    return parse_object(data, TOKENIZER, max_depth=_MAX_DEPTH)


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise unsupported(f"a model of type {shown(model.get('type'))}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise unsupported(f"a {key}")


def _vocabulary(model: Mapping[str, Any], vocab_size: int) -> dict[int, str]:
    texts: dict[int, str] = {}
    for text, number in as_object(model.get("vocab"), "model.vocab").items():
        if as_token_id(number, vocab_size) in texts:
            raise malformed(f"two tokens have the id {number}")
        texts[number] = as_text(text, "a token")
    return texts


@dataclass(frozen=True, slots=True)
class _Added:
    """A token that is looked for in the text before it is split."""

    text: str
    special: bool


def _added_tokens(raw: Mapping[str, Any], vocab_size: int) -> dict[int, _Added]:
    added = {}
    for entry in as_list(raw.get("added_tokens") or [], "added_tokens"):
        token = as_object(entry, "an added token")
        text = as_text(token.get("content"), "an added token")
        added[as_token_id(token.get("id"), vocab_size)] = _Added(text, token.get("special") is True)
    return added


def _tokens(
    vocabulary: Mapping[int, str], added: Mapping[int, _Added], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Text and kind of every id."""
    tokens: list[str] = []
    kinds: list[int] = []
    for number in range(vocab_size):
        if number in added:
            tokens.append(added[number].text)
            kinds.append(CONTROL if added[number].special else USER_DEFINED)
        elif number in vocabulary:
            tokens.append(vocabulary[number])
            kinds.append(NORMAL)
        else:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
    if len(set(tokens)) != len(tokens):
        raise malformed("two ids have the same text")
    return tokens, kinds


def _sentencepiece(
    raw: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[Splitting, list[int]]:
    """The splitting of a text; and kinds of tokens, those of bytes and the unknown one included."""
    space_first = puts_space_first(raw)
    model = as_object(raw.get("model"), "model")
    special = dict.fromkeys(byte_tokens(tokens), BYTE)
    if isinstance(model.get("unk_token"), str):
        special[model["unk_token"]] = UNKNOWN
    kinds = [special.get(text, kind) for text, kind in zip(tokens, kinds, strict=True)]
    pieces = [text for text, kind in zip(tokens, kinds, strict=True) if kind == NORMAL]
    scores = piece_scores(tokens, pieces, _merges(model))
    return Splitting("llama", "default", scores=scores, space_first=space_first), kinds


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs to merge; in old files each is one text, joined by a space."""
    merges = []
    for entry in as_list(model.get("merges"), "model.merges"):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2:
            raise malformed(f"{shown(entry)} is not a pair to merge")
        left, right = (as_text(part, "a merge") for part in pair)
        if not left or not right or " " in left + right:
            raise malformed(f"{shown(entry)} is not a pair of tokens")
        merges.append((left, right))
    return merges


# GGUF's names of special tokens by those of tokenizer_config.json and config.json.
_SPECIAL = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "separator": "sep_token",
    "padding": "pad_token",
}


def _special_ids(
    texts: Mapping[str, str], ids: Mapping[str, int], config: Mapping[str, Any], vocab_size: int
) -> dict[str, int]:
    """Special tokens. tokenizer_config.json wins over config.json: runtimes generate with it."""
    special = {}
    for name, key in _SPECIAL.items():
        number: Any = ids.get(texts.get(key, ""))
        if number is None:
            listed = config.get(f"{key}_id")
            number = listed[0] if isinstance(listed, list) and listed else listed
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < vocab_size:
            special[name] = number
    return special


def _pre_tokenizer(raw: Mapping[str, Any]) -> str:
    """The name of the splitting rule, recognised by its structure in tokenizer.json."""
    ignores_merges = as_object(raw.get("model"), "model").get("ignore_merges") is True
    parts = steps(raw.get("pre_tokenizer"), "pretokenizers")
    name = None
    match [part.get("type") for part in parts]:
        case ["ByteLevel"] if _splits(parts[0], by_regex=True) and not ignores_merges:
            name = "gpt-2"
        case ["Digits", "ByteLevel"] if _splits(parts[1], by_regex=True) and not ignores_merges:
            name = "smollm" if parts[0].get("individual_digits") is True else None
        case ["Split", "ByteLevel"] if _splits(parts[1], by_regex=False):
            name = _SPLITS.get((_isolating_pattern(parts[0]), ignores_merges))
    if name is None:
        raise unsupported("such a pre_tokenizer")
    _check_normaliser(raw.get("normalizer"), name)
    return name


def _splits(byte_level: Mapping[str, Any], *, by_regex: bool) -> bool:
    """Whether a byte-level step splits by GPT-2's pattern, or only maps bytes to letters."""
    plain = byte_level.get("add_prefix_space") is False
    return plain and byte_level.get("use_regex", True) is by_regex


def _isolating_pattern(split: Mapping[str, Any]) -> str:
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    isolates = split.get("behavior") == "Isolated" and split.get("invert") is False
    return regex if isolates and isinstance(regex, str) else ""


def _check_normaliser(normaliser: Any, pre: str) -> None:
    """Runtimes do not normalise; Qwen's NFC only changes texts that are not composed already."""
    if normaliser is None or (normaliser == {"type": "NFC"} and pre == "qwen2"):
        return
    raise unsupported("a normalizer")


def _surroundings(post: Any, raw: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids that are put before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for part in steps(post, "processors"):
        if part.get("type") == "ByteLevel":
            continue
        if part.get("type") != "TemplateProcessing":
            raise unsupported(f"a post_processor of type {shown(part.get('type'))}")
        declared = as_object(part.get("special_tokens"), "special_tokens")
        target = before
        for piece in as_list(part.get("single"), "single"):
            piece = as_object(piece, "single")
            if "Sequence" in piece:
                target = after
                continue
            name = as_object(piece.get("SpecialToken"), "single").get("id")
            ids = declared.get(name) if isinstance(name, str) else None
            target += as_list(as_object(ids, "special_tokens").get("ids"), "special_tokens")
    return before, after


def _adds(ids: Sequence[int], special: Mapping[str, int], name: str) -> bool:
    """Whether exactly the special token is put there; GGUF cannot express other tokens."""
    if list(ids) not in ([], [special.get(name)]):
        raise unsupported(f"other tokens around a text than {name}")
    return bool(ids)
