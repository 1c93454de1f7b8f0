"""Why architectures are refused, where an examination cannot find out enough."""

from __future__ import annotations

_STREAMS = "its layers hand on several streams of hidden states at once"
_SOUND = "it makes sound: its tokens come from several codebooks at once"
_DRAFT = "it only drafts for another model, whose keys and values its layers read"
_SHARED = "several of its layers share their FFN"
_RECURRENT = "its layers are recurrent mixers without an FFN"

REASONS = {
    "bitnet": "it normalises over all channels before its down projection, so none can go alone",
    "blt": "its layers run on patches of bytes, whose ends another model finds",
    "cpmant": "it puts a prompt of learned tokens before every text",
    "falcon_mamba": _RECURRENT,
    "gemma3n": _STREAMS,
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
    "qwen4_exp": _STREAMS,
    "qwen4_exp_text": _STREAMS,
    "reformer": "its layers are reversible: attention and FFN work on two streams in turn",
    "xlm": "attention and FFN of a layer are not parts of one module in transformers",
    "xlnet": "it predicts tokens in any order, not from left to right",
    "zamba": _SHARED,
    "zamba2": _SHARED,
}
"""By model type. Used where the examination of it fails."""
