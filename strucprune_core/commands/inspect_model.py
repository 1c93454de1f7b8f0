"""`strucprune inspect`: what a model is, and whether it can be pruned. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from strucprune_core.commands import figures
from strucprune_core.commands.arguments import ModelArgument
from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.failures import failures
from strucprune_core.commands.tables import show

if TYPE_CHECKING:
    from strucprune_core.models.config import ModelConfig


def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show what a model is and whether it can be pruned. Reads no weights."""
    from strucprune_core.errors import naming_field
    from strucprune_core.export.checks import possible_exports
    from strucprune_core.models.experts import experts_of
    from strucprune_core.plan.estimate import size_of
    from strucprune_core.plan.inspection import read_model
    from strucprune_core.storage.open import open_store, pinned

    with failures(as_json):
        with naming_field("model.uri"):
            model = pinned(model)
        facts = read_model(model, open_store)
        config = facts.config
        size = size_of(config, dtype_bytes=1)
        result: dict[str, Any] = {
            "model": model,
            "architecture": config.model_type,
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "intermediate_sizes": list(config.intermediate_sizes),
            "experts": [
                len(block.ffn_widths) if experts is None else experts.count
                for block, experts in zip(
                    config.blocks,
                    (experts_of(config, layer) for layer in range(config.layers)),
                    strict=True,
                )
            ],
            "query_heads": [block.query_heads for block in config.blocks],
            "kv_heads": [block.kv_heads for block in config.blocks],
            "head_dim": config.head_dim or None,
            "vocab_size": config.vocab_size,
            "parameters": size.parameters,
            "ffn_channels": size.ffn_channels,
            "bytes": facts.index.total_bytes,
            "quantised": facts.index.quantised,
            "exports": possible_exports(config, facts.index),
            "files": len(facts.index.file_sizes),
            "digest": facts.index.digest(),
        }
        show(result if as_json else _for_people(result, config), as_json)


def _for_people(facts: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The result of `inspect` with values of layers as short texts."""
    if max(facts["experts"]) <= 1:
        facts = {name: value for name, value in facts.items() if name != "experts"}
    else:
        facts = {**facts, "experts": _by_layer(facts["experts"])}
    return {
        **{name: value for name, value in facts.items() if name not in ("bytes", "quantised")},
        "size": figures.size(facts["bytes"]),
        "quantised": facts["quantised"] or "no",
        "intermediate_sizes": _by_layer([_ffn(block.ffn_widths) for block in config.blocks]),
        "query_heads": _by_layer(facts["query_heads"]),
        "kv_heads": _by_layer(facts["kv_heads"]),
        "exports": ", ".join(facts["exports"]) or "none",
    }


def _by_layer(values: Sequence[object]) -> str:
    """The value of all layers, or that of each."""
    if len(set(values)) == 1:
        return f"{values[0]} in each layer"
    return ", ".join(str(value) for value in values)


def _ffn(widths: Sequence[int]) -> str:
    """The width of a layer's FFN, or of each of its experts; some layers have none."""
    if not widths:
        return "none"
    if len(set(widths)) == 1:
        return str(widths[0])
    return "/".join(str(width) for width in widths)
