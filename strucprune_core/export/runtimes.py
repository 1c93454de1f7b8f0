"""Which runtimes load a job's result, and from which folder; else what to change. No torch.

`RUNTIMES` is the one table of these claims. `make runtimes` loads what it says; a test compares it
with what was recorded (`benchmarks/results/runtimes.json`). Architectures that are not written out
were loaded in transformers when their table was made (`tests.coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.export.checks import check_shape
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.generic.architectures import generic_model_types
from strucprune_core.spec import Export, PruningSpec

Form = Literal["per_layer", "uniform", "gguf", "gguf_q8_0", "fp8", "block_configs"]

_EVERY = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "opt",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
)
_LLAMAS = ("llama", "mistral")
_IN_VLLM = tuple(name for name in _EVERY if name != "gpt_neox")  # It has no class of its own.
_SLIDING = ("gemma2", "gemma3_text")
# As `checks.check_shape` lets them be exported.
_IN_FP8 = tuple(name for name in _EVERY if name not in ("opt", "gpt2", "mixtral", "qwen3_moe"))
# Families whose code in a runtime divides the hidden size by the heads, whatever `head_dim` says.
# (Of opt, gpt2 and gpt_neox transformers does that too, so no job leaves them other heads.)
_WIDTH_DERIVED_IN_VLLM = ("qwen2",)
_WIDTH_DERIVED_IN_MLX = ("qwen2", "phi3", "mixtral")
# opt is unknown to it. Of gpt2 it asks for a key that transformers 5 does not write. Of gemma2 it
# computed other logits. See benchmarks/results/runtimes.json.
_NOT_IN_MLX = ("opt", "gpt2", "gemma2")
# Without experts its config.json has not the earlier names of keys that MLX reads.
_WITH_EXPERTS_IN_MLX = ("qwen3_moe",)
# Families whose FFN is always four times as wide as the hidden states there.
_FFN_DERIVED_IN_MLX = ("gpt_neox",)
HEADS = frozenset({"kv_groups", "query_heads"})
"""Structures that leave fewer attention heads."""
_HEADS_DIVIDE = ("opt", "gpt2", "gpt_neox")  # See above: their number stays in layout `uniform`.
_PROMPT = "The most famous play by William Shakespeare is"
_COMMANDS = {
    "vLLM": "vllm serve {folder}{options}",
    "llama.cpp": f'llama-cli -m {{folder}}/model.gguf -p "{_PROMPT}" -n 32',
    "MLX": f'mlx_lm.generate --model {{folder}} --prompt "{_PROMPT}"',
}
_WAYS = "import strucprune_core.register, or trust_remote_code=True"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadableForm(_Part):
    """A form of the result that a runtime loads."""

    form: Form = Field(description="A layout of the checkpoint, or an export.")
    families: tuple[str, ...]
    note: str = Field(description="How it is loaded.")
    since: str | None = Field(
        default=None, description="The earliest release that loads it; null: that is not known."
    )
    blocks_since: str | None = Field(
        default=None, description="The same for a result without some attention or FFN blocks."
    )
    without_blocks: tuple[str, ...] = Field(
        default=(),
        description="Families of which a result without some attention and FFN blocks was loaded.",
    )
    fewer_heads: tuple[str, ...] = Field(
        default=(),
        description="Families of which a result in layout `uniform` with fewer heads was loaded.",
    )
    not_tried: tuple[str, ...] = Field(
        default=(), description="Families of which no result was loaded; the code is there."
    )
    not_without: tuple[str, ...] = Field(
        default=(), description="Structures: if any of these were removed, it does not load."
    )
    full_heads: bool = Field(
        default=False,
        description="It loads only while query heads times their width are the hidden size: none "
        "was removed.",
    )


class Runtime(_Part):
    """A runtime, and the forms that it loads, the best one first."""

    name: str
    loads: tuple[LoadableForm, ...]


def _others(families: tuple[str, ...], without: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in families if name not in without)


RUNTIMES: tuple[Runtime, ...] = (
    Runtime(
        name="transformers",
        loads=(
            LoadableForm(
                form="uniform",
                families=_EVERY,
                note="the family's own classes",
                fewer_heads=_others(_EVERY, _HEADS_DIVIDE),
            ),
            LoadableForm(
                form="per_layer",
                families=tuple(name for name in _EVERY if name not in _SLIDING),
                note=f"{_WAYS}; from transformers 4.51, with sliding windows or without whole "
                "blocks from 4.57",
                since="4.51",
                blocks_since="4.57",
                without_blocks=tuple(name for name in _EVERY if name not in _SLIDING),
            ),
            LoadableForm(
                form="per_layer",
                families=_SLIDING,
                note=f"{_WAYS}; from transformers 4.57",
                since="4.57",
                blocks_since="4.57",
                without_blocks=_SLIDING,
            ),
            LoadableForm(
                form="uniform", families=generic_model_types(), note="the family's own classes"
            ),
            LoadableForm(
                form="per_layer",
                families=generic_model_types(),
                note=f"{_WAYS}; from transformers 5",
                since="5",
            ),
            LoadableForm(
                form="fp8",
                families=_IN_FP8,
                note="with compressed-tensors installed; per_layer as the checkpoint itself",
            ),
        ),
    ),
    Runtime(
        name="vLLM",
        loads=(
            LoadableForm(
                form="uniform",
                families=_others(_EVERY, _WIDTH_DERIVED_IN_VLLM),
                note="as it is",
                fewer_heads=_others(_EVERY, (*_WIDTH_DERIVED_IN_VLLM, *_HEADS_DIVIDE)),
            ),
            LoadableForm(
                form="uniform", families=_WIDTH_DERIVED_IN_VLLM, note="as it is", full_heads=True
            ),
            LoadableForm(
                form="per_layer",
                families=_IN_VLLM,
                note="with `strucprune` installed beside it",
                without_blocks=_IN_VLLM,
                not_without=("experts",),
            ),
            LoadableForm(
                form="block_configs",
                families=_LLAMAS,
                note="--trust-remote-code",
                without_blocks=_LLAMAS,
            ),
            LoadableForm(
                form="fp8",
                families=_others(_IN_FP8, ("gpt_neox",)),
                note="as the checkpoint itself",
            ),
        ),
    ),
    Runtime(
        name="llama.cpp",
        loads=(
            LoadableForm(form="gguf", families=_LLAMAS, note="as it is", without_blocks=_LLAMAS),
            LoadableForm(form="gguf_q8_0", families=_LLAMAS, note="as it is"),
        ),
    ),
    Runtime(
        name="MLX",
        loads=(
            LoadableForm(
                form="uniform",
                families=_others(
                    _EVERY,
                    (
                        *_NOT_IN_MLX,
                        *_WIDTH_DERIVED_IN_MLX,
                        *_FFN_DERIVED_IN_MLX,
                        *_WITH_EXPERTS_IN_MLX,
                    ),
                ),
                note="as it is",
                fewer_heads=_others(
                    _EVERY,
                    (
                        *_NOT_IN_MLX,
                        *_WIDTH_DERIVED_IN_MLX,
                        *_FFN_DERIVED_IN_MLX,
                        *_WITH_EXPERTS_IN_MLX,
                    ),
                ),
            ),
            LoadableForm(
                form="uniform",
                families=_FFN_DERIVED_IN_MLX,
                note="as it is",
                not_without=("ffn_channels",),
            ),
            LoadableForm(
                form="uniform",
                families=_WITH_EXPERTS_IN_MLX,
                note="as it is",
                not_without=("experts",),
                fewer_heads=_WITH_EXPERTS_IN_MLX,
            ),
            LoadableForm(
                form="uniform", families=_WIDTH_DERIVED_IN_MLX, note="as it is", full_heads=True
            ),
            LoadableForm(
                form="block_configs", families=_LLAMAS, note="as it is", without_blocks=_LLAMAS
            ),
        ),
    ),
)


class RuntimeSupport(_Part):
    """Whether a runtime loads what a job will produce."""

    runtime: str
    loads: bool
    folder: str | None = Field(
        default=None, description="Under the output prefix, '.' for itself; null: does not load."
    )
    tried: bool | None = Field(
        default=None,
        description="Whether such a result of this family was loaded in a recorded run; null: does "
        "not load.",
    )
    note: str | None = Field(default=None, description="How it is loaded.")
    reason: str | None = Field(default=None, description="Why it does not load.")
    remedy: str | None = Field(default=None, description="What to change so that it does.")
    mends: tuple[Mend, ...] = Field(
        default=(), description="The same as changes of one field each, of which any will do."
    )


def runtime_support(config: ModelConfig, pruning: PruningSpec) -> list[RuntimeSupport]:
    """Say for every runtime whether, and from where, it loads a job's result.

    Args:
        config: The dense model.
        pruning: What is asked for.
    """
    return [_support(runtime, config, pruning) for runtime in RUNTIMES]


def loading_example(
    support: RuntimeSupport, pruning: PruningSpec, config: ModelConfig
) -> tuple[str, str]:
    """("python" or "sh", a program or command that loads a result), run in the result's directory.

    Args:
        support: Of a runtime that loads it.
        pruning: What was asked for.
        config: The dense model.
    """
    folder = support.folder or "."
    if support.runtime == "transformers":
        own = pruning.layout == "uniform" and support.folder == "."
        auto = "AutoModelForCausalLM"
        if config.generic is not None and '"text_config"' in config.generic.config_json:
            auto = "AutoModelForImageTextToText"
        lines = [
            f"from transformers import {auto}, AutoTokenizer",
            *([] if own else ["", "import strucprune_core.register"]),
            "",
            f'model = {auto}.from_pretrained("{folder}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        ]
        return "python", "\n".join(lines)
    return "sh", _COMMANDS[support.runtime].format(
        folder=folder, options=" --trust-remote-code" if folder == "block_configs" else ""
    )


def _support(runtime: Runtime, config: ModelConfig, pruning: PruningSpec) -> RuntimeSupport:
    known = [
        form
        for form in runtime.loads
        if form.form != "fp8"  # It has the layout's shape, and loads where that does.
        and config.family in form.families
        and not set(form.not_without).intersection(pruning.structures)
        and not (form.full_heads and _loses_heads(config, pruning))
    ]
    for form in known:
        if form.form == pruning.layout or form.form in pruning.exports:
            return RuntimeSupport(
                runtime=runtime.name,
                loads=True,
                folder="." if form.form == pruning.layout else form.form,
                tried=_tried(form, config, pruning),
                note=form.note,
            )
    mends = _mends(known, config, pruning)
    produced = " and ".join([f"layout '{pruning.layout}'", *pruning.exports])
    return RuntimeSupport(
        runtime=runtime.name,
        loads=False,
        reason=f"it does not load {produced} of family '{config.family}'",
        remedy=_remedy(mends),
        mends=mends,
    )


def _tried(form: LoadableForm, config: ModelConfig, pruning: PruningSpec) -> bool:
    removed = set(pruning.structures)
    if config.family in form.not_tried:
        return False
    if form.form == "uniform":
        return config.family in form.fewer_heads or not removed & HEADS
    return config.family in form.without_blocks or not removed & {"attention_blocks", "ffn_blocks"}


def _loses_heads(config: ModelConfig, pruning: PruningSpec) -> bool:
    """Whether heads of the result are not as wide, all together, as its hidden states."""
    if HEADS.intersection(pruning.structures):
        return True
    heads = {block.query_heads for block in config.blocks} - {0}
    return any(count * config.head_dim != config.hidden_size for count in heads)


def _mends(
    known: Sequence[LoadableForm], config: ModelConfig, pruning: PruningSpec
) -> tuple[Mend, ...]:
    """What would make a runtime load the result."""
    mends = []
    for form in known:
        if form.form == "per_layer" or form.form == "uniform":
            mends.append(Mend("pruning.layout", form.form))
        elif _possible(form.form, pruning, config):
            mends.append(Mend("pruning.exports", [*pruning.exports, form.form]))
    return tuple(mends)


def _remedy(mends: Sequence[Mend]) -> str | None:
    """The mends as a sentence; None if there are none."""
    ways = [
        f"use layout '{mend.value}'"
        if mend.field == "pruning.layout"
        else f"add '{mend.value[-1]}' to pruning.exports"
        for mend in mends
    ]
    text = ", or ".join(ways)
    return f"{text[:1].upper()}{text[1:]}." if text else None


def _possible(export: Export, pruning: PruningSpec, config: ModelConfig) -> bool:
    try:
        check_shape(export, pruning, config)
    except InvalidSpec:
        return False
    return True
