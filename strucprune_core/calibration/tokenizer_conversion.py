"""A tokenizer.json from the files of older tokenizers, by transformers' own converters.

`vocab.json` with `merges.txt`, and SentencePiece's `tokenizer.model`, are data; transformers has
the rules of each model's tokenizer in a class of its own. Only such a class is used, never code of
the checkpoint. Of tokenizer_config.json only settings of a known meaning reach it, since others may
name files of this machine. This runs in the process that reads texts (`text_process_main`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strucprune_core.calibration.tokenizer_config import TOKENIZER_CONFIG
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.errors import InvalidCheckpoint

# Beside vocabularies: what tokens are special, and how texts begin and end.
_SETTINGS = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "bos_token",
        "cls_token",
        "eos_token",
        "errors",
        "extra_special_tokens",
        "legacy",
        "mask_token",
        "pad_token",
        "sep_token",
        "split_special_tokens",
        "tokenizer_class",
        "unk_token",
    }
)
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MAX_DEPTH = 16
_MAX_REASON = 300
_REMEDY = (
    "Save the tokenizer with transformers where you trust the model "
    "(AutoTokenizer.from_pretrained(...).save_pretrained(...)), which writes a tokenizer.json."
)


def converted(files: Mapping[str, bytes], model_type: str) -> str:
    """A tokenizer.json.

    Args:
        files: The tokenizer's files by name: vocabularies, and those that say of special tokens.
        model_type: The model's, which names the class where tokenizer_config.json does not.

    Raises:
        InvalidCheckpoint: transformers has no class for it, or cannot read the files.
    """
    settings = _settings(files.get(TOKENIZER_CONFIG))
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
        folder = Path(name)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return _saved(folder, settings, model_type)


def _settings(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    given = parse_object(data, TOKENIZER_CONFIG, max_depth=_MAX_DEPTH)
    return {name: value for name, value in given.items() if name in _SETTINGS}


def _saved(folder: Path, settings: Mapping[str, Any], model_type: str) -> str:
    # transformers takes seconds to import: only here.
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    stated = settings.get("tokenizer_class")
    if stated is not None and (
        not isinstance(stated, str)
        or not _CLASS.fullmatch(stated)
        or tokenizer_class_from_name(stated) is None
    ):
        raise _failed(f"transformers has no class {shown(stated)}", model_type)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        found = backend is not None and backend.get_vocab_size(with_added_tokens=False)
        text = str(backend.to_str()) if backend is not None and found else None
    except MemoryError:
        raise
    except Exception as error:  # Whatever the class makes of files that are not its own.
        raise _failed(str(error), model_type) from error
    if text is None:
        raise _failed(f"{type(tokenizer).__name__} finds no vocabulary", model_type)
    return text


def _failed(reason: str, model_type: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"there is no tokenizer.json, and transformers cannot make one for a model of type "
        f"{shown(model_type)}: {shown(reason, _MAX_REASON)}",
        field="model.uri",
        remedy=_REMEDY,
    )
