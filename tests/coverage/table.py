"""The table of architectures, and the page that shows it to users."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from strucprune_core.models.families import FAMILIES
from strucprune_core.models.generic import architectures
from strucprune_core.models.generic.expert_table import expert_architecture
from strucprune_core.models.generic.layer_table import why_layers_stay

ROOT = Path(__file__).parents[2]
TABLE = Path(architectures.__file__).with_name(architectures.TABLE)
PAGE = ROOT / "docs" / "architectures.md"

Entries = Mapping[str, Mapping[str, Any]]

_HEAD = """\
# Architectures

<!-- This page is made by `make coverage`. -->

What counts is `model_type` in config.json. Of the {language} language models that transformers
{version} has, StrucPrune prunes {accepted}: {own} are written out in it, {generic} run in
transformers' own modules, one layer at a time. Of these {accepted}, {channels} lose channels, and
{experts} lose whole experts and nothing else. Of {seeing} further models, which see images, it
prunes {decoders}: the decoder of the text; the rest is copied as it is. Code that comes with a
checkpoint is never run.

For every generic row with channels a tiny random model was made, a quarter of its channels removed,
and the written checkpoint loaded by transformers' Auto classes: its logits are those of the pruned
layers run one by one, to 1e-5. "Whole layers" means that each layer of the tiny model was removed,
and its ordinary class gave the same logits. How whole experts were tried is said in
[Experts](experts.md). A job checks its own model's layers before any heavy work.
"""
_EXPERTS = "whole experts"
_TABLE = """
## {title}

| model type | | what is removed, or why nothing is |
|---|---|---|
"""


def language_models() -> list[str]:
    """Every model type that `AutoModelForCausalLM` takes, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def seeing_models() -> list[str]:
    """Every other model type that `AutoModelForImageTextToText` takes, sorted."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    return sorted(names - MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys())


def own_family(name: str) -> str | None:
    """The written-out family that checkpoints of a model type are; None if there is none."""
    stored: str = CONFIG_MAPPING[name].model_type
    family = name if name in FAMILIES else stored
    return family if family in FAMILIES else None


def generic_names() -> list[str]:
    """The model types that the table is about: all that are no written-out family."""
    return [name for name in language_models() + seeing_models() if own_family(name) is None]


def as_stored(entries: Entries) -> str:
    """The table as the product reads it: a model type per line."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}"
        for name in sorted(entries)
    ]
    version = json.dumps(transformers.__version__)
    body = ",\n".join(lines)
    return f'{{\n "model_types": {{\n{body}\n }},\n "transformers": {version}\n}}\n'


def page(entries: Entries) -> str:
    """The page of a table; which model types lose experts, the product's own table says."""
    tables = {
        "Language models": [_row(name, entries) for name in language_models()],
        "Models that see images": [_row(name, entries) for name in seeing_models()],
    }
    language, seeing = (Counter(kind for _, kind, _ in rows) for rows in tables.values())
    accepted = language["own"] + language["generic"]
    experts = sum(what == _EXPERTS for _, _, what in tables["Language models"])
    text = _HEAD.format(
        version=transformers.__version__,
        language=language.total(),
        accepted=accepted,
        own=language["own"],
        generic=language["generic"],
        channels=accepted - experts,
        experts=experts,
        seeing=seeing.total(),
        decoders=seeing["generic"],
    )
    for title, rows in tables.items():
        text += _TABLE.format(title=title)
        text += "".join(f"| {name} | {kind} | {what} |\n" for name, kind, what in rows)
    return text


def _row(name: str, entries: Entries) -> tuple[str, str, str]:
    family = own_family(name)
    experts = expert_architecture(name if family is None else family) is not None
    too = f"; {_EXPERTS}" if experts else ""
    if family is not None:
        what = "FFN channels, attention heads, blocks, layers"
        return name, "own", (what if family == name else f"{what} (as {family})") + too
    entry = entries[name]
    if "architecture" in entry:
        layers = "" if why_layers_stay(name) else "; whole layers"
        return name, "generic", _removed(entry["architecture"]["channels"]) + layers + too
    return (name, "generic", _EXPERTS) if experts else (name, "refused", entry["refused"])


def _removed(channels: list[dict[str, Any]]) -> str:
    """Which channels go, in words."""
    shared = {"share" in each["output"] for each in channels}
    if shared == {True}:
        return "channels of shared experts"
    return "channels of FFNs and shared experts" if True in shared else "FFN channels"
