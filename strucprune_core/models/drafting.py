"""Tensors that draft further tokens (multi-token prediction, MTP): beside the model, not of it.

They are one or more decoder layers of their own, with a norm and a projection, that guess the
tokens after the next one. A forward pass of the model does not read them. Files name them apart
("mtp.layers.0."), or as layers after the last ("model.layers.61." of a model with 61 layers).

Their widths are their own, and nothing of them is pruned. But programs that draft build them by the
keys of config.json that count experts, heads and channels. Where a job changes such a key
(`plan.sites.with_drafting`), they would not load any more. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.fields import RawConfig

COUNT_KEYS = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "num_mtp_modules",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
)
"""Keys by which configs count the layers that draft."""

_NAMED = re.compile(r"(^|\.)(mtp|nextn|eagle|medusa)[a-z_]*\d*\.")
# What a layer that drafts has beside those of a decoder layer.
_PARTS = re.compile(r"(eh_proj|enorm|hnorm|shared_head)\.")
_EXPERTS = re.compile(r"(^|[._])experts?([._]|$)|block_sparse_moe")


def drafting_names(
    names: Collection[str], layer: str, raw: RawConfig, counts: Collection[int]
) -> frozenset[str]:
    """Those of a checkpoint's tensors that draft further tokens.

    Args:
        names: All tensors.
        layer: What the names of a decoder layer's tensors begin with; `{}` is its number.
        raw: The part of config.json that is of the decoder.
        counts: How many decoder layers there may be, by config.json.
    """
    named = {name for name in names if _NAMED.search(name)}
    pattern = re.compile(re.escape(layer).replace(r"\{\}", r"(\d{1,9})"))
    layers: dict[int, set[str]] = {}
    for name in set(names) - named:
        matched = pattern.match(name)
        if matched is not None:
            layers.setdefault(int(matched[1]), set()).add(name)
    return frozenset(named.union(*_after_the_last(layers, raw, counts)))


def _after_the_last(
    layers: Mapping[int, set[str]], raw: RawConfig, counts: Collection[int]
) -> list[set[str]]:
    """Tensors of each layer after the last, if all of these draft."""
    if len(layers) in counts:
        return []
    said = max((_whole(raw.get(key)) for key in COUNT_KEYS), default=0)
    for count in sorted(counts, reverse=True):
        extra = {number: names for number, names in layers.items() if number >= count}
        if extra and all(
            number < count + said or any(_PARTS.search(name) for name in names)
            for number, names in extra.items()
        ):
            return list(extra.values())
    return []


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def draft_with_experts(config: ModelConfig) -> bool:
    """Whether what drafts has experts."""
    return any(_EXPERTS.search(name) for name, _ in config.drafting)


def says_no_drafting(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says there are no layers that draft."""
    changed = {key: says_no_drafting(raw[key]) for key in ("text_config",) if key in raw}
    keys = [key for key in COUNT_KEYS if key in raw] or ([] if changed else [COUNT_KEYS[0]])
    return {**raw, **changed, **dict.fromkeys(keys, 0)}
