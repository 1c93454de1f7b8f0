"""The model's tokenizer: the only file that calls the `tokenizers` library.

A tokenizer.json is data, not code, but it is not trusted. The library raises bare exceptions for a
malformed one. For a pattern that backtracks too long, or an index out of range, its Rust code
panics: a `BaseException`, which no `except Exception` catches. All become the typed errors below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models

from strucprune_core.calibration.tokenizer_config import TOKENIZER, TOKENIZER_CONFIG
from strucprune_core.checkpoint.hostile_json import refuse_lfs_pointer, shown
from strucprune_core.errors import InvalidCheckpoint, InvalidText, StrucPruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FIELD = "model.uri"
# The class of Rust panics cannot be imported: each Rust module has its own.
_PANIC = "PanicException"
_MAX_REASON = 300


class TextTokenizer:
    """Turns text into token ids that the model has embeddings for.

    Args:
        tokenizer: The library's, with truncation and padding off.
        vocab_size: Rows of the model's embedding.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._rows = vocab_size

    @property
    def vocab_size(self) -> int:
        """Tokens that both the tokenizer and the model's embedding have."""
        return min(self._tokenizer.get_vocab_size(), self._rows)

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any valid Unicode.
            special_tokens: Whether to add the tokens that the tokenizer begins or ends texts with.

        Raises:
            InvalidText: the tokenizer has no token for something in the text; no field is named.
            InvalidCheckpoint: the tokenizer fails, or gives an id that the model has no row for.
        """
        with _translated(_not_encoded):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        if ids:
            self._check_id(max(ids))
        return ids

    def decode(self, ids: list[int], *, special_tokens: bool) -> str:
        """The text of token ids.

        Args:
            ids: Ids below `vocab_size`; others have no text.
            special_tokens: Whether the text of special tokens is part of it.

        Raises:
            InvalidCheckpoint: the tokenizer fails.
        """
        with _translated(_not_decoded):
            text: str = self._tokenizer.decode(ids, skip_special_tokens=not special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text, None if the tokenizer has no such token.

        Raises:
            InvalidCheckpoint: the model has no row for it.
        """
        with _translated(_bad_special_token):
            number: int | None = self._tokenizer.token_to_id(token)
        if number is not None:
            self._check_id(number)
        return number

    def _check_id(self, token: int) -> None:
        if token >= self._rows:
            raise InvalidCheckpoint(
                f"the tokenizer gives token {token}, but the model has a vocabulary of "
                f"{self._rows}",
                field=_FIELD,
                remedy=f"Use the {TOKENIZER} that belongs to the model.",
            )


def load_tokenizer(data: bytes, vocab_size: int) -> TextTokenizer:
    """Parse a tokenizer.json.

    Args:
        data: The file.
        vocab_size: Rows of the model's embedding.

    Raises:
        InvalidCheckpoint: it is not a tokenizer definition.
    """
    refuse_lfs_pointer(data, TOKENIZER)
    with _translated(_not_loaded):
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        # Some tokenizers are saved with these on. They would cut or pad every block of the text;
        # dropout, a regularisation for training, would encode a text differently in each run.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        if not tokenizer.get_vocab_size():
            raise ValueError("its vocabulary is empty")
    return TextTokenizer(tokenizer, vocab_size)


def chat_tokenizer(special_tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer without vocabulary, with which transformers renders chat templates.

    Args:
        special_tokens: Text of each special token by its name ("eos_token").

    Raises:
        InvalidCheckpoint: transformers refuses the special tokens.
    """
    # transformers takes seconds to import: only where it is needed.
    from transformers import PreTrainedTokenizerFast

    with _translated(_bad_special_token):
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), **dict(special_tokens)
        )


@contextmanager
def _translated(failure: Callable[[str, bool], StrucPruneError]) -> Iterator[None]:
    """Turn whatever the library throws into the error that `failure` makes of it.

    `failure` gets the reason and whether the library panicked.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise failure(shown(str(error), _MAX_REASON), False) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise  # Such as an interrupt.
        raise failure(shown(str(error), _MAX_REASON), True) from error


def _not_encoded(reason: str, panicked: bool) -> StrucPruneError:
    if panicked:
        return InvalidCheckpoint(
            f"the tokenizer fails on the text: {reason}",
            field=_FIELD,
            remedy=f"Correct the patterns and ids in {TOKENIZER}, or use another text.",
        )
    return InvalidText(
        f"the model's tokenizer cannot encode the text: {reason}",
        remedy=f"Use a text whose words it all knows, or a {TOKENIZER} with an unknown token.",
    )


def _not_decoded(reason: str, panicked: bool) -> StrucPruneError:
    return InvalidCheckpoint(
        f"the tokenizer cannot decode tokens: {reason}",
        field=_FIELD,
        remedy=f"Correct the decoder in {TOKENIZER}.",
    )


def _not_loaded(reason: str, panicked: bool) -> StrucPruneError:
    return InvalidCheckpoint(
        f"{TOKENIZER} cannot be read: {reason}",
        field=_FIELD,
        remedy="Save the tokenizer again with transformers' save_pretrained.",
    )


def _bad_special_token(reason: str, panicked: bool) -> StrucPruneError:
    return InvalidCheckpoint(
        f"a special token of {TOKENIZER_CONFIG} cannot be used: {reason}",
        field=_FIELD,
        remedy=f"Correct {TOKENIZER_CONFIG}.",
    )
