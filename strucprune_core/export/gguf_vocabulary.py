"""A tokenizer.json as GGUF describes vocabularies, read as hostile data. No torch, no gguf.

GGUF has a field for each part of a byte-level BPE tokenizer, except that runtimes know how text is
split before BPE by name only (`tokenizer.ggml.pre`). A name is given where tokenizer.json has
exactly the structure that runtimes implement under it; any other tokenizer is refused, because a
runtime would cut texts in other places than the model was trained on, and say nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strucprune_core.calibration.tokenizer_config import read_tokenizer_config
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, ObjectNotFound
from strucprune_core.storage.store import Store

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER_BYTES = 64 << 20
_MAX_DEPTH = 16

# Kinds of tokens as GGUF numbers them.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_APOSTROPHES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALISED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
# (pattern, whether a piece that is a token stays whole): what a runtime does under the name.
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
class GgufVocabulary:
    """A vocabulary by GGUF's terms (`tokenizer.ggml.*`).

    Attributes:
        pre: How text is split before BPE.
        tokens: Texts by id, in the byte-level alphabet.
        token_types: Kind of each token.
        merges: Pairs, the first is merged first.
        special_ids: Ids by GGUF's names ("bos", "eos", "unknown", "separator", "padding").
        add_bos: Whether a text begins with `bos`.
        add_eos: Whether a text ends with `eos`.
        chat_template: Jinja source, None if the model has none.
    """

    pre: str
    tokens: Sequence[str]
    token_types: Sequence[int]
    merges: Sequence[str]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_vocabulary(
    store: Store, files: Collection[str], config: Mapping[str, Any], vocab_size: int
) -> GgufVocabulary:
    """Read a model's tokenizer files.

    Args:
        store: The model.
        files: Names of its side files that exist.
        config: Its config.json.
        vocab_size: Rows of its embedding; ids that the tokenizer does not use are filled up.

    Raises:
        InvalidSpec: GGUF runtimes have no such tokenizer; the field is `pruning.exports`.
        InvalidCheckpoint: a file is too large, malformed, or contradicts another.
        StorageError: the store refused or failed.
    """
    raw = _read(store)
    model = _object(raw.get("model"), "model")
    _check_model(model)
    vocabulary = _vocabulary(model, vocab_size)
    added = _added_tokens(raw, vocab_size)
    tokens, kinds = _tokens(vocabulary, added, vocab_size)
    settings = read_tokenizer_config(store, files)
    ids = {text: number for number, text in enumerate(tokens)}
    special = _special_ids(settings.special_tokens, ids, config, vocab_size)
    before, after = _surroundings(raw.get("post_processor"), raw)
    return GgufVocabulary(
        pre=_pre_tokenizer(raw, ignores_merges=model.get("ignore_merges") is True),
        tokens=tokens,
        token_types=kinds,
        merges=_merges(model),
        special_ids=special,
        add_bos=_adds(before, special, "bos"),
        add_eos=_adds(after, special, "eos"),
        chat_template=settings.chat_template,
    )


def _read(store: Store) -> dict[str, Any]:
    info = store.stat(TOKENIZER)
    if info is None:
        raise ObjectNotFound(f"there is no {TOKENIZER} under {store.uri}")
    if info.size_bytes > MAX_TOKENIZER_BYTES:
        raise InvalidCheckpoint(f"{TOKENIZER} is larger than {MAX_TOKENIZER_BYTES} bytes")
    data = bytes(store.read(TOKENIZER, 0, info.size_bytes))
    return parse_object(data, TOKENIZER, max_depth=_MAX_DEPTH)


def _unsupported(what: str) -> InvalidSpec:
    return InvalidSpec(
        f"the gguf export knows no tokenizer with {what}",
        field="pruning.exports",
        remedy="Leave 'gguf' out; it needs byte-level BPE that splits texts as GPT-2, SmolLM, "
        "Llama 3, Qwen2 or Mistral's Tekken do.",
    )


def _malformed(what: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{TOKENIZER} is malformed: {what}",
        remedy="Save the tokenizer again (AutoTokenizer, from_pretrained, save_pretrained).",
    )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(f"{name} is not an object")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _malformed(f"{name} is not a list")
    return value


def _text(value: Any, name: str) -> str:
    """A string that UTF-8 can hold (JSON can escape half a surrogate pair)."""
    if not isinstance(value, str):
        raise _malformed(f"{name} is not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _malformed(f"{name} {shown(value)} is not valid Unicode") from error
    return value


def _id(value: Any, vocab_size: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise _malformed(f"{shown(value)} is no token id below the vocabulary's {vocab_size:,}")
    return value


def _check_model(model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise _unsupported(f"a model of type {shown(model.get('type'))}")
    if model.get("byte_fallback"):
        raise _unsupported("byte fallback (SentencePiece, as in Llama 2)")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported(f"a {key}")


def _vocabulary(model: Mapping[str, Any], vocab_size: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for text, number in _object(model.get("vocab"), "model.vocab").items():
        if _id(number, vocab_size) in found:
            raise _malformed(f"two tokens have the id {number}")
        found[number] = _text(text, "a token")
    return found


@dataclass(frozen=True, slots=True)
class _Added:
    """A token that is found in the text before it is split."""

    text: str
    special: bool


def _added_tokens(raw: Mapping[str, Any], vocab_size: int) -> dict[int, _Added]:
    found = {}
    for entry in _list(raw.get("added_tokens") or [], "added_tokens"):
        token = _object(entry, "an added token")
        text = _text(token.get("content"), "an added token")
        found[_id(token.get("id"), vocab_size)] = _Added(text, token.get("special") is True)
    return found


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
        raise _malformed("two ids have the same text")
    return tokens, kinds


def _merges(model: Mapping[str, Any]) -> list[str]:
    """Pairs as GGUF joins them; old files join them already."""
    merges = []
    for entry in _list(model.get("merges"), "model.merges"):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2:
            raise _malformed(f"{shown(entry)} is no pair to merge")
        left, right = (_text(part, "a merge") for part in pair)
        if not left or not right or " " in left + right:
            raise _malformed(f"{shown(entry)} is no pair of byte-level tokens")
        merges.append(f"{left} {right}")
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
    """Where both files name a token, tokenizer_config.json counts: runtimes generate with it."""
    found = {}
    for name, key in _SPECIAL.items():
        number: Any = ids.get(texts.get(key, ""))
        if number is None:
            listed = config.get(f"{key}_id")
            number = listed[0] if isinstance(listed, list) and listed else listed
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < vocab_size:
            found[name] = number
    return found


def _pre_tokenizer(raw: Mapping[str, Any], *, ignores_merges: bool) -> str:
    """The name of the way a text is split, by the structure that tokenizer.json describes."""
    parts = _parts(raw.get("pre_tokenizer"), "pretokenizers")
    name = None
    match [part.get("type") for part in parts]:
        case ["ByteLevel"] if _splits(parts[0], by_regex=True) and not ignores_merges:
            name = "gpt-2"
        case ["Digits", "ByteLevel"] if _splits(parts[1], by_regex=True) and not ignores_merges:
            name = "smollm" if parts[0].get("individual_digits") is True else None
        case ["Split", "ByteLevel"] if _splits(parts[1], by_regex=False):
            name = _SPLITS.get((_isolating_pattern(parts[0]), ignores_merges))
    if name is None:
        raise _unsupported("such a pre_tokenizer")
    _check_normaliser(raw.get("normalizer"), name)
    return name


def _parts(step: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step there is."""
    if step is None:
        return []
    step = _object(step, key)
    if step.get("type") != "Sequence":
        return [step]
    return [_object(part, key) for part in _list(step.get(key), key)]


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
    """Runtimes normalise nothing; Qwen's NFC changes only texts that are not composed already."""
    if normaliser is None or (normaliser == {"type": "NFC"} and pre == "qwen2"):
        return
    raise _unsupported("a normalizer")


def _surroundings(post: Any, raw: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids that are put before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for part in _parts(post, "processors"):
        if part.get("type") == "ByteLevel":
            continue
        if part.get("type") != "TemplateProcessing":
            raise _unsupported(f"a post_processor of type {shown(part.get('type'))}")
        declared = _object(part.get("special_tokens"), "special_tokens")
        target = before
        for piece in _list(part.get("single"), "single"):
            piece = _object(piece, "single")
            if "Sequence" in piece:
                target = after
                continue
            name = _object(piece.get("SpecialToken"), "single").get("id")
            ids = declared.get(name) if isinstance(name, str) else None
            target += _list(_object(ids, "special_tokens").get("ids"), "special_tokens")
    return before, after


def _adds(ids: Sequence[int], special: Mapping[str, int], name: str) -> bool:
    """Whether exactly the special token is put there; GGUF can say nothing else."""
    if list(ids) not in ([], [special.get(name)]):
        raise _unsupported(f"other tokens around a text than {name}")
    return bool(ids)
