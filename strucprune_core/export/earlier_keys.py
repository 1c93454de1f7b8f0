"""config.json with the names that keys had before transformers 5, beside the new ones. No torch.

Releases before 5, and other runtimes such as MLX, do not know `rope_parameters`: they would rotate
by their own defaults, without a word. transformers 5 reads the old names too. `per_layer` needs
none of this, since its modelling code translates.
"""

from __future__ import annotations

from typing import Any


def with_earlier_keys(config: dict[str, Any], family: str) -> dict[str, Any]:
    """A config.json that either reads.

    Args:
        config: With keys of any release.
        family: Of the model, one that is written out.
    """
    added: dict[str, Any] = {}
    if family == "qwen3_moe" and "num_local_experts" in config:
        added["num_experts"] = config["num_local_experts"]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and not config.get("rope_scaling"):
        by_kind = rope.get("full_attention")
        if isinstance(by_kind, dict):
            added |= _rope(by_kind, family)
            local = rope.get("sliding_attention") or {}
            added |= _given({"rope_local_base_freq": local.get("rope_theta")})
        else:
            added |= _rope(rope, family)
    return {**config, **added}


def _rope(rope: dict[str, Any], family: str) -> dict[str, Any]:
    """The old keys of one set of rotary positions."""
    rest = {key: value for key, value in rope.items() if value is not None}
    theta, share = rest.pop("rope_theta", None), rest.pop("partial_rotary_factor", None)
    if family == "gpt_neox":
        keys = _given({"rotary_emb_base": theta, "rotary_pct": share})
    else:
        keys = _given({"rope_theta": theta, "partial_rotary_factor": share})
    kind = rest.pop("rope_type", None) or rest.get("type") or "default"
    if kind == "default":
        return keys
    if family == "phi3":  # Its old class takes three keys, and no others.
        trained = rest.pop("original_max_position_embeddings", None)
        keys |= _given({"original_max_position_embeddings": trained})
        return {**keys, "rope_scaling": {**rest, "type": kind}}
    return {**keys, "rope_scaling": {**rest, "rope_type": kind}}


def _given(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}
