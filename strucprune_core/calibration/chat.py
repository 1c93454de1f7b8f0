"""From conversations to text, by the model's chat template.

A template is a program that nobody vouches for. transformers renders it in Jinja's immutable
sandbox, where it reaches no Python object but the conversation. It can still take time and memory;
the process that it runs in has limits for both (`text_process`).
"""

from __future__ import annotations

from collections.abc import Mapping

from strucprune_core.calibration.records import MAX_RECORD_BYTES, SHAPE, Record, bad_record
from strucprune_core.calibration.text import Text
from strucprune_core.calibration.tokenizer import chat_tokenizer
from strucprune_core.checkpoint.hostile_json import shown

# Some templates (Llama 3's) write today's date unless they are given one, but a job must end with
# the same bytes tomorrow. This is the date that those templates themselves fall back to.
FIXED_DATE = "26 Jul 2024"


class ChatRenderer:
    """Writes conversations out as the model expects them."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        self._template = template
        self._tokenizer = chat_tokenizer(special_tokens)

    def render(self, text: Text, record: Record) -> str:
        """One conversation as text, its special tokens included.

        Raises:
            InvalidText: the record is not a conversation, or the template refuses it.
        """
        messages = _messages(text, record)
        try:
            written = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, date_string=FIXED_DATE
            )
        except MemoryError:
            raise
        except Exception as error:  # A template may raise anything.
            raise bad_record(
                text,
                record.where,
                f"is refused by the model's chat template: {shown(str(error), 300)}",
                "Check the roles and their order: the template says which ones it accepts.",
            ) from error
        if not isinstance(written, str) or len(written) > MAX_RECORD_BYTES:
            raise bad_record(
                text,
                record.where,
                f"becomes more than {MAX_RECORD_BYTES:,} characters in the model's chat template",
                "Check the template: conversations should grow little in it.",
            )
        return written


def _messages(text: Text, record: Record) -> list[dict[str, object]]:
    value = record.value
    if not isinstance(value, list) or not value:
        raise bad_record(text, record.where, "holds no messages", SHAPE)
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_record(
                text, record.where, f"has the message {shown(message)} without a role", SHAPE
            )
    return value
