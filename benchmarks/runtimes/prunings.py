"""Which models are pruned, and how: SmolLM2-135M, and a tiny random model of each family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strucprune_core.export.checks import FAMILIES as EXPORTED
from strucprune_core.export.layouts import CLASS_STEMS

FAMILIES = tuple(CLASS_STEMS)
# Architectures that are not written out in the library: two of many, as examples.
GENERIC = ("granite", "olmo2")
MIXTURES = ("mixtral", "qwen3_moe")
# Of the others, heads cannot be removed in layout `uniform`.
WITH_FEWER_HEADS = tuple(name for name in FAMILIES if name not in ("opt", "gpt2", "gpt_neox"))
IN_FP8 = tuple(name for name in FAMILIES if name not in ("opt", "gpt2", *MIXTURES))
_HEADS: Mapping[str, Any] = {"layout": "per_layer", "structures": ["ffn_channels", "kv_groups"]}
_EXPORTS = ["gguf", "block_configs"]
_QUANTISED = ["gguf_q8_0", "fp8"]
_NO_ATTENTION: Mapping[str, Any] = {"layout": "per_layer", "structures": ["attention_blocks"]}
_BOTH = ("attention", "ffn")
# One of three groups, or of two.
_FEWER_HEADS: Mapping[str, Any] = {
    "layout": "uniform",
    "structures": ["kv_groups"],
    "sparsity": 0.4,
}
# Without a pass through the model for each layer: of random weights any choice is as good.
_FAST = {"energy": "forward"}
# One block of each kind in six layers: those that the model has made faint.
_BLOCKS: Mapping[str, Any] = {
    "layout": "per_layer",
    "structures": ["attention_blocks", "ffn_blocks"],
    "sparsity": 0.16,
}


@dataclass(frozen=True, slots=True)
class Pruning:
    """A way to prune a model.

    Attributes:
        family: Of the model.
        settings: Of the job's specification, under `pruning`.
        tiny: Whether the model is a tiny random one, or else SmolLM2-135M.
        missing: Blocks that some layers must lose: "attention", "ffn".
        shape: Of a tiny model, what differs from others of its family.
    """

    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tiny: bool = True
    missing: tuple[str, ...] = ()
    shape: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structures(self) -> set[str]:
        """Those that are removed."""
        return set(self.settings.get("structures", ["ffn_channels"]))


PRUNINGS: Mapping[str, Pruning] = {
    # In multiples of 32, for every matrix of `gguf_q8_0` to be in 8 bits.
    "per_layer": Pruning(
        "llama",
        {"layout": "per_layer", "multiple_of": 32, "exports": [*_EXPORTS, *_QUANTISED]},
        tiny=False,
    ),
    # Nothing for `block_configs` to fill up.
    "per_layer_256": Pruning(
        "llama",
        {"layout": "per_layer", "multiple_of": 256, "exports": _EXPORTS},
        tiny=False,
    ),
    "uniform": Pruning("llama", {"layout": "uniform", "exports": ["gguf", "fp8"]}, tiny=False),
    "uniform_heads": Pruning("llama", _FEWER_HEADS, tiny=False),
    # Layers of different widths and different numbers of heads.
    "per_layer_heads": Pruning("llama", {**_HEADS, "exports": ["gguf"]}, tiny=False),
    **{
        f"{family}_uniform": Pruning(family, {"layout": "uniform", "multiple_of": 8})
        for family in FAMILIES
    },
    **{f"{family}_heads": Pruning(family, {**_HEADS, **_FAST}) for family in FAMILIES},
    **{
        f"{family}_channels": Pruning(family, {"layout": "per_layer", **_FAST})
        for family in GENERIC
    },
    **{f"{family}_blocks": Pruning(family, _BLOCKS, missing=_BOTH) for family in FAMILIES},
    **{f"{family}_uniform_heads": Pruning(family, _FEWER_HEADS) for family in WITH_FEWER_HEADS},
    # Three heads do not divide 128: written as a mistral.
    "llama_odd_heads": Pruning(
        "llama", {**_FEWER_HEADS, "sparsity": 0.25}, shape={"num_key_value_heads": 4}
    ),
    **{
        f"{family}_fp8": Pruning(family, {**_HEADS, **_FAST, "exports": ["fp8"]})
        for family in IN_FP8
    },
    **{
        f"{family}_q8_0": Pruning(
            family,
            {"layout": "per_layer", "multiple_of": 32, "exports": ["gguf_q8_0"], **_FAST},
        )
        for family in EXPORTED
    },
    **{
        f"{family}_{name}": Pruning(family, {**settings, "exports": exports}, missing=missing)
        for family in EXPORTED
        for name, settings, exports, missing in (
            ("channels", {"layout": "per_layer", **_FAST}, _EXPORTS, ()),
            ("no_attention", _NO_ATTENTION, _EXPORTS, ("attention",)),
            # A GGUF file cannot hold it.
            ("exported_blocks", _BLOCKS, ["block_configs"], _BOTH),
        )
    },
    **{
        f"{family}_layers": Pruning(
            family, {"layout": "uniform", "structures": ["layers"]}, shape=shape
        )
        # MLX knows FFNs of gpt_neox that are four times as wide as the hidden states.
        for family, shape in (("llama", {}), ("gpt2", {}), ("gpt_neox", {"intermediate_size": 512}))
    },
    **{
        f"{family}_experts": Pruning(family, {"layout": "uniform", "structures": ["experts"]})
        for family in MIXTURES
    },
}
"""By name of the checkpoint."""
