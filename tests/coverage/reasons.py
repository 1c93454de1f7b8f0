"""Why architectures are refused, where an examination cannot find out enough."""

from __future__ import annotations

_SOUND = "it makes sound: its tokens come from several codebooks at once"
_DRAFT = "it only drafts for another model, whose keys and values its layers read"
_SHARED = "several of its layers share their FFN"
_ENCODER = "its decoder reads what an encoder makes of the text"
_IMAGE = "it does not run on text without an image"
_PACKAGES = "transformers needs packages for images to make it, which StrucPrune does not install"
_NORMALISED = "it normalises over all channels before its down projection, so none can go alone"
_EARLIER = "each of its layers reads what many layers before it have put out"
_RECURRENT = "its layers are recurrent mixers without an FFN"

REASONS = {
    "bitnet": _NORMALISED,
    "blip": _IMAGE,
    "blip-2": _IMAGE,
    "blt": "its layers run on patches of bytes, whose ends another model finds",
    "chameleon": "its logits of image tokens are replaced after the head",
    "cpmant": "it puts a prompt of learned tokens before every text",
    "diffusion_gemma": "it fills in tokens in any order, not from left to right",
    "evolla": "it does not run on text without a protein",
    "falcon_mamba": _RECURRENT,
    "florence2": _ENCODER,
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "idefics": _IMAGE,
    "inkling_mm_model": _PACKAGES,
    "instructblip": _IMAGE,
    "instructblipvideo": _IMAGE,
    "inkling2": _EARLIER,
    "inkling2_text": _EARLIER,
    "kosmos-2": _IMAGE,
    "kosmos-2.5": _NORMALISED,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
    "pi0": "it puts out movements, not text",
    "pix2struct": _IMAGE,
    "pp_formulanet": _IMAGE,
    "reformer": "its layers are reversible: attention and FFN work on two streams in turn",
    "shieldgemma2": "it classifies images, and puts out no text",
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": "it is two models, named in its configuration",
    "xlm": "attention and FFN of a layer are not parts of one module in transformers",
    "xlnet": "it predicts tokens in any order, not from left to right",
    "zamba": _SHARED,
    "zamba2": _SHARED,
}
"""By model type. Used where the examination of it fails."""
