"""Recognises prefixes without a model that can be opened, and says what to do. No torch.

Models come in many forms. The files of a form that this build cannot read say which one it is, so
that the error can name a remedy that helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX, SINGLE_FILE
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint, ObjectNotFound

WHAT_TO_GIVE = "Name the directory or prefix that holds config.json and the weights."

PICKLED_MODEL = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".zst", ".xz", ".bz2", ".7z")
_FILES = (".safetensors", ".json", ".gguf", ".onnx", ".h5", *_PICKLED, *_ARCHIVES)

# In this order: a folder may hold several forms of one model.
_FORMATS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)"),
        "an adapter (PEFT, LoRA), not a whole model",
        "Name its base model, and the adapter as model.adapter_uri. An adapter that is no plain "
        "LoRA can be merged by PEFT (merge_and_unload); save that with save_pretrained.",
    ),
    (
        re.compile(r"model_index\.json"),
        "a diffusers pipeline, not a language model",
        WHAT_TO_GIVE,
    ),
    (
        re.compile(r"consolidated(\.\d+)?\.(pth|safetensors)"),
        "a model in the layout of Meta's or Mistral's own code",
        "Use the model in the layout of transformers: most are published in both, and "
        "transformers has conversion scripts for both.",
    ),
    (
        re.compile(r".*\.gguf"),
        "a model for llama.cpp (GGUF)",
        "Use the model that it was made from, in safetensors. The pruned one can be exported to "
        "GGUF (pruning.exports).",
    ),
    (
        re.compile(r".*\.onnx(_data)?"),
        "a model for ONNX runtimes",
        "Use the transformers model that it was exported from.",
    ),
    (
        re.compile(r".*\.(h5|msgpack|ot|npz|tflite|mlmodel|mlpackage)"),
        "a model for another framework than PyTorch",
        "Use the same model in safetensors.",
    ),
)


def nothing_there(uri: str) -> ObjectNotFound | InvalidCheckpoint:
    """The error for a prefix or directory without any file; `uri` may name a file itself."""
    name = uri.rstrip("/").rpartition("/")[2]
    local = "://" not in uri
    if (local and Path(uri).is_file()) or (not local and name.endswith(_FILES)):
        return _one_file(uri, name)
    if local and not Path(uri).exists():
        return ObjectNotFound(
            f"there is no directory {uri}",
            remedy=f"{WHAT_TO_GIVE} A model of the Hugging Face hub is hf://org/name.",
        )
    return ObjectNotFound(f"there is nothing under {uri}", remedy=WHAT_TO_GIVE)


def _one_file(uri: str, name: str) -> InvalidCheckpoint:
    form = _form_of((name,))
    if form is not None:
        return InvalidCheckpoint(f"{uri} is {form[0]}", remedy=form[1])
    if name.endswith(_ARCHIVES):
        return InvalidCheckpoint(
            f"{uri} is an archive", remedy="Unpack it, and name the directory with the files."
        )
    folder = uri.rstrip("/").rpartition("/")[0]
    return InvalidCheckpoint(
        f"{uri} names a file; a model is a directory or prefix of several",
        remedy=f"Name the one that holds it: {folder}",
    )


def not_a_model(uri: str, names: Sequence[str]) -> InvalidCheckpoint | None:
    """The error for a prefix with files but no model that can be opened; None if there is one."""
    if SINGLE_FILE in names or SHARD_INDEX in names:
        return None if CONFIG in names else _no_config(uri, names)
    return _other_form(uri, names) or (_no_weights if CONFIG in names else _no_config)(uri, names)


def not_convertible(uri: str, names: Sequence[str]) -> InvalidCheckpoint:
    """The error for a prefix with files but without a pickled model in transformers' layout."""
    if CONFIG not in names:
        return _other_form(uri, names) or _no_config(uri, names)
    return _other_form(uri, names) or InvalidCheckpoint(
        f"there is neither {' nor '.join(PICKLED_MODEL)} under {uri}",
        remedy="Use a model in the layout of transformers, saved by save_pretrained.",
    )


def _other_form(uri: str, names: Sequence[str]) -> InvalidCheckpoint | None:
    form = _form_of(names)
    if form is None:
        return None
    what, remedy, pattern = form
    return InvalidCheckpoint(f"{uri} holds {what} ({_first(names, pattern)})", remedy=remedy)


def _form_of(names: Sequence[str]) -> tuple[str, str, re.Pattern[str]] | None:
    for pattern, form, remedy in _FORMATS:
        if any(pattern.fullmatch(name) for name in names):
            return form, remedy, pattern
    return None


def _first(names: Iterable[str], pattern: re.Pattern[str]) -> str:
    return shown(min(name for name in names if pattern.fullmatch(name)))


def _no_config(uri: str, names: Sequence[str]) -> InvalidCheckpoint:
    below = sorted(name for name in names if name.endswith(f"/{CONFIG}"))
    if below:
        folder = below[0].removesuffix(f"/{CONFIG}")
        return InvalidCheckpoint(
            f"there is no {CONFIG} under {uri}, but one in {shown(folder)} there",
            remedy=f"Name {uri}/{folder}." if len(below) == 1 else "Name the folder of one model.",
        )
    weights = sorted(name for name in names if name.endswith((".safetensors", ".bin")))
    if weights:
        return InvalidCheckpoint(
            f"there is no {CONFIG} beside {shown(weights[0])} under {uri}",
            remedy=f"Copy the model's {CONFIG} and the tokenizer's files next to the weights.",
        )
    return InvalidCheckpoint(f"there is no {CONFIG} under {uri}", remedy=WHAT_TO_GIVE)


def _no_weights(uri: str, names: Sequence[str]) -> InvalidCheckpoint:
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        convertible = any(name in names for name in PICKLED_MODEL)
        return InvalidCheckpoint(
            f"the weights are pickled ({shown(pickled[0])}); pickled files can run code and are "
            f"refused",
            remedy="Convert the model first: strucprune convert MODEL OUTPUT."
            if convertible
            else "Load the model where you trust it, and save it with save_pretrained, which "
            "writes safetensors.",
        )
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards:
        return InvalidCheckpoint(
            f"{shards[0]} is there, but {SHARD_INDEX}, which says what the shards hold, is not",
            remedy="Copy it next to them.",
        )
    other = sorted(name for name in names if name.endswith(".safetensors"))
    if other:
        return InvalidCheckpoint(
            f"there is {shown(other[0])}, but neither {SINGLE_FILE} nor {SHARD_INDEX}",
            remedy=f"If that file holds the whole model, name it {SINGLE_FILE}.",
        )
    return InvalidCheckpoint(
        f"there are no weights under {uri}: neither {SINGLE_FILE} nor {SHARD_INDEX}",
        remedy="Copy the weights next to config.json.",
    )
