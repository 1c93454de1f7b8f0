"""Whether a model can lose whole layers, by its config.json. No torch.

transformers' own class builds the result from a config.json with fewer layers (see
`export.layer_keys`). Where a class computes something from a layer's place, or from the number of
layers, that is another model, without an error.
"""

from __future__ import annotations

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.export.layer_keys import periods, with_layers
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import parse_config
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.generic.layer_table import why_layers_stay
from strucprune_core.spec import PruningSpec


def check_layers_removable(pruning: PruningSpec, config: ModelConfig, raw: RawConfig) -> None:
    """Check that a model without some of its layers is still what its config.json can say.

    Args:
        pruning: What is removed.
        config: The model.
        raw: Its config.json.

    Raises:
        InvalidSpec: its class would give the layers that stay other kinds, or computes something
            that depends on their number.
    """
    if "layers" not in pruning.structures and not {"attention_blocks", "ffn_blocks"} <= set(
        pruning.structures
    ):
        return
    reason = _why_layers_stay(config, raw)
    if reason is not None:
        raise InvalidSpec(
            f"whole layers of this model cannot be removed: {reason}",
            field="pruning.structures",
            remedy="Remove other structures: ['ffn_channels'].",
            mends=[Mend("pruning.structures", ["ffn_channels"])],
        )


def _why_layers_stay(config: ModelConfig, raw: RawConfig) -> str | None:
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
    if any("deepstack" in key for part in parts for key in part):
        return "it adds what it sees in images to the outputs of layers by their number"
    if config.generic is None:
        return _own_layers_stay(config, raw)
    section = raw.get("text_config")
    repeating = periods(section if isinstance(section, dict) else raw)
    if repeating:
        return (
            f"which layer is of which kind follows from {repeating[0]} of config.json; save it "
            "with its layer_types (AutoConfig.from_pretrained(...).save_pretrained(...))"
        )
    return why_layers_stay(config.family)


def _own_layers_stay(config: ModelConfig, raw: RawConfig) -> str | None:
    """Tries a few layers: without one, config.json must describe the same layers as before."""
    if config.layers < 2:
        return None  # It cannot lose its only layer anyway.
    for layer in sorted({0, config.layers // 2, config.layers - 1}):
        kept = [each for each in range(config.layers) if each != layer]
        left = parse_config(with_layers(raw, config, kept))
        if left.blocks != tuple(config.blocks[each] for each in kept):
            return f"a rule of its config.json gives layers behind layer {layer} another kind then"
    return None
