"""The table of architectures, and the page that shows it to users."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from strucprune_core.models.families import FAMILIES
from strucprune_core.models.generic import architectures

ROOT = Path(__file__).parents[2]
TABLE = Path(architectures.__file__).with_name(architectures.TABLE)
PAGE = ROOT / "docs" / "architectures.md"

Entries = Mapping[str, Mapping[str, Any]]

_HEAD = """\
# Architectures

<!-- This page is made by `make coverage`. -->

StrucPrune takes the `model_type` of config.json. Of the {all} language models that transformers
{version} has, it prunes {accepted}: {own} are written out in StrucPrune, {generic} run in
transformers' own modules, one layer at a time. {refused} are refused. Code that comes with a
checkpoint is never run.

For every generic row a tiny random model was made, a quarter of its channels removed, and the
written checkpoint loaded by transformers' Auto classes: its logits are those of the pruned layers
run one by one, to 1e-5. A job checks its own model's layers before any heavy work.

| model type | | what is removed, or why nothing is |
|---|---|---|
"""


def model_types() -> list[str]:
    """Every model type that `AutoModelForCausalLM` takes, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def own_family(name: str) -> str | None:
    """The written-out family that checkpoints of a model type are; None if there is none."""
    stored: str = CONFIG_MAPPING[name].model_type
    family = name if name in FAMILIES else stored
    return family if family in FAMILIES else None


def generic_names() -> list[str]:
    """The model types that the table is about: all that are no written-out family."""
    return [name for name in model_types() if own_family(name) is None]


def write_table(entries: Entries) -> None:
    """Write the table that the product reads: a model type per line."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}"
        for name in sorted(entries)
    ]
    version = json.dumps(transformers.__version__)
    body = ",\n".join(lines)
    text = f'{{\n "model_types": {{\n{body}\n }},\n "transformers": {version}\n}}\n'
    TABLE.write_text(text, encoding="utf-8")


def page(entries: Entries) -> str:
    """The page of a table."""
    rows = [_row(name, entries) for name in model_types()]
    kinds = Counter(kind for _, kind, _ in rows)
    head = _HEAD.format(
        all=len(rows),
        version=transformers.__version__,
        accepted=kinds["own"] + kinds["generic"],
        **{kind: kinds[kind] for kind in ("own", "generic", "refused")},
    )
    return head + "".join(f"| {name} | {kind} | {what} |\n" for name, kind, what in rows)


def _row(name: str, entries: Entries) -> tuple[str, str, str]:
    family = own_family(name)
    if family is not None:
        what = "FFN channels, attention heads"
        return name, "own", what if family == name else f"{what} (as {family})"
    entry = entries[name]
    if "refused" in entry:
        return name, "refused", entry["refused"]
    return name, "generic", _removed(entry["architecture"]["channels"])


def _removed(channels: list[dict[str, Any]]) -> str:
    """Which channels go, in words."""
    shared = {"shared_expert" in each["output"] for each in channels}
    if shared == {True}:
        return "channels of shared experts"
    return "channels of FFNs and shared experts" if True in shared else "FFN channels"
