"""The tokenizer's class in a result, so that AutoTokenizer needs no code to find it. No torch.

Where the file names no class, AutoTokenizer goes by the model type. That of a pruned model is not
transformers' own, so AutoTokenizer would ask whether to run the code beside the weights.
"""

from __future__ import annotations

import json
from typing import Any

# The class that goes by tokenizer.json alone, known to every release of transformers. Releases
# since 5 save it under a name that earlier ones do not know.
PLAIN_CLASS, PLAIN_CLASS_SINCE_5 = "PreTrainedTokenizerFast", "TokenizersBackend"


def with_tokenizer_class(data: bytes, model_type: str) -> bytes:
    """A tokenizer_config.json that names a class of transformers, and no code of its own.

    Args:
        data: The dense model's.
        model_type: Of the dense model.

    Returns:
        The same bytes if it does so already.
    """
    settings: dict[str, Any] = json.loads(data)
    found = settings.get("tokenizer_class")
    named = _known(found) if found is not None else _class_of(model_type)
    if named == found and "auto_map" not in settings:
        return data
    settings = {key: value for key, value in settings.items() if key != "auto_map"}
    settings["tokenizer_class"] = named
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def _class_of(model_type: str) -> str:
    """The class that AutoTokenizer takes for a dense model."""
    # transformers takes seconds and 100 MB to import: only here.
    from transformers.models.auto import tokenization_auto

    return _known(tokenization_auto.TOKENIZER_MAPPING_NAMES.get(model_type))


def _known(name: Any) -> str:
    """A name that transformers knows, else that of the plain class."""
    from transformers.models.auto import tokenization_auto

    if not isinstance(name, str) or name == PLAIN_CLASS_SINCE_5:
        return PLAIN_CLASS
    return name if tokenization_auto.tokenizer_class_from_name(name) is not None else PLAIN_CLASS
