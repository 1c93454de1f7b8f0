"""The job specification: one definition for the REST body, the CLI and Python. No torch.

All constraints of single fields are here. `plan.inspection` checks, before any heavy work, what
needs the model: whether its widths allow the sparsity, or whether a text is long enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_jsonable_python

from strucprune_core.errors import Mend
from strucprune_core.plan.device_table import DeviceTable
from strucprune_core.storage.uri import check_uri, check_writable_uri


class Unfit(ValueError):
    """A value does not fit its field, or the others of its section.

    Attributes:
        mends: As those of an error, with fields of the section; the field "" is the value's own.
    """

    def __init__(self, message: str, *mends: Mend) -> None:
        super().__init__(message)
        self.mends = mends

    def mends_in(self, section: str) -> list[Mend]:
        """The mends with whole paths: of the section (or the field itself) at this dotted path."""
        names = [(section, mend.field) for mend in self.mends]
        paths = [".".join(filter(None, each)) for each in names]
        return [Mend(path, each.value) for path, each in zip(paths, self.mends, strict=True)]


Uri = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2048,
        description="`s3://bucket/key`, `hf://[datasets/]org/name[@revision][/path]` (a Hugging "
        "Face hub), or a local path.",
    ),
    AfterValidator(check_uri),
]
WritableUri = Annotated[
    str,
    Field(min_length=1, max_length=2048, description="`s3://bucket/key`, or a local path."),
    AfterValidator(check_writable_uri),
]


FileFormat = Literal["text", "jsonl", "parquet"]
_FORMATS: dict[str, FileFormat] = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
}


TaskName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][^\s,/\\]*$")]

Energy = Literal["kl_probe", "gradient", "forward"]


def _no_percentage(value: Any) -> Any:
    """A fraction is often written as a percentage by mistake."""
    number, suffix = value, ""
    if isinstance(value, str) and value.strip().endswith("%"):
        suffix = "%"
        with contextlib.suppress(ValueError):
            number = float(value.strip().removesuffix("%"))
    given = isinstance(number, int | float) and not isinstance(number, bool)
    if given and (suffix or number > 1) and number <= 100:
        raise Unfit(
            f"a fraction between 0 and 1 is meant, not a percentage: did you mean "
            f"{number / 100:g}?",
            Mend("", number / 100),
        )
    return value


# Adds no limit: what it refuses, `Field`'s limits would refuse with a worse message.
_Fraction = BeforeValidator(_no_percentage)
Share = Annotated[float, _Fraction, Field(ge=0.0, le=1.0)]


def _one_line(name: str) -> str:
    """A name is shown in lists and logs, so it holds nothing that hides or reorders text."""
    if not name.isprintable() or name != name.strip():
        raise ValueError(
            "a name is one line of printable characters that neither begins nor ends with a space."
        )
    return name


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]

DEVICES = ("auto", "cpu", "cuda")
"""The devices that have no number."""
_NUMBERED_GPU = r"cuda:[0-9]{1,3}"


def is_device(name: str) -> bool:
    """Whether PyTorch could have a device of this name."""
    return name in DEVICES or re.fullmatch(_NUMBERED_GPU, name) is not None


def _device(name: str) -> str:
    if not is_device(name):
        raise ValueError(
            "It must be one of these: 'auto', 'cpu', 'cuda', or 'cuda:1' for the GPU of that "
            "number."
        )
    return name


def is_gpu(device: str) -> bool:
    """Whether a device's name is that of a GPU, with or without its number."""
    return device.partition(":")[0] == "cuda"


DeviceName = Annotated[
    str,
    AfterValidator(_device),
    WithJsonSchema({"type": "string", "pattern": f"^({'|'.join(DEVICES)}|{_NUMBERED_GPU})$"}),
]

Prompt = Annotated[str, Field(min_length=1, max_length=1000)]
DEFAULT_PROMPTS: tuple[str, ...] = (
    "The capital of France is",
    "Water freezes when the temperature",
    "Once upon a time, in a small village,",
    "To bake a loaf of bread, first",
    "The three primary colours are",
    "def is_prime(number):",
)
"""What both models continue where a job asks for samples and names no prompts."""
MAX_PROMPTS = 16

MIN_SAMPLES = 2
MAX_DEADLINE_SECONDS = 30 * 24 * 3600
MAX_SIZES = 8


class _Strict(BaseModel):
    # Finite: JSON has no infinity, so a journalled one could not be read again.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Export = Literal["gguf", "gguf_q8_0", "fp8", "block_configs"]
GGUF_EXPORTS: tuple[Export, ...] = ("gguf", "gguf_q8_0")
QUANTISED_EXPORTS: tuple[Export, ...] = ("gguf_q8_0", "fp8")
"""Exports in 8 bits: made of the accepted result, and measured by themselves."""
Dtype = Literal["bfloat16", "float16", "float32"]
ExpertScore = Literal["reap", "output_norm"]


class ModelSpec(_Strict):
    """The checkpoint to prune: `config.json`, `tokenizer.json` and safetensors under one prefix."""

    uri: Uri = Field(
        description="Directory, `s3://bucket/prefix` or `hf://org/name[@revision]` with "
        "`config.json`, `tokenizer.json` and safetensors. A branch or tag of a hub is replaced by "
        "its commit when the job is submitted."
    )
    adapter_uri: Uri | None = Field(
        default=None,
        description="Directory, `s3://` or `hf://` prefix of a LoRA adapter of PEFT, which is "
        "merged into the model as it is read.",
    )


class OutputSpec(_Strict):
    """Where the pruned checkpoint and its report go. Must be empty."""

    uri_prefix: WritableUri = Field(
        description="Directory or `s3://bucket/prefix` for the pruned model; must be empty."
    )
    dtype: Dtype | None = Field(
        default=None,
        description="What weights are converted to as they are read, and stored in. Default: what "
        "the model is stored in; for a quantised model bfloat16.",
    )


class RecoverySpec(_Strict):
    """Training of each pruned layer towards the dense one's outputs: `method.training.recovery`."""

    steps: int = Field(default=100, ge=1, le=10_000, description="Steps of Adam per layer.")
    mode: Literal["parallel", "sequential"] = Field(
        default="sequential",
        description="A layer's input: with `parallel` that of the dense model, so that layers do "
        "not depend on each other; with `sequential` the output of the pruned layers before it, "
        "whose errors it learns to correct.",
    )


class DistillationSpec(_Strict):
    """Training of the whole pruned model towards the dense one: `method.training.distillation`."""

    steps: int = Field(default=100, ge=1, le=100_000, description="Steps of Adam.")
    batch_sequences: int = Field(
        default=4, ge=1, le=4096, description="Calibration sequences of one step."
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0.0,
        le=0.1,
        description="Highest rate, relative to the root mean square of each matrix.",
    )


_BLOCKS = frozenset({"attention_blocks", "ffn_blocks", "layers"})


def _experts_layout(data: dict[str, Any]) -> dict[str, str]:
    """The defaults of a job that removes experts: it takes equally many of each layer."""
    layout, allocation = data.get("layout"), data.get("allocation")
    if set(data["structures"]) != {"experts"}:  # Channels by layer, experts equally.
        return {"layout": "per_layer", "allocation": "threshold"}
    by_layer = layout == "per_layer" or allocation in ("threshold", "softmax")
    if by_layer:
        return {"layout": "per_layer", "allocation": "threshold"}
    return {"layout": "uniform", "allocation": "uniform"}


def size_label(sparsity: float) -> str:
    """The name of one of several sizes: of its units and of its folder."""
    return f"{sparsity:.6g}"


_COUNT_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


def _count(value: Any) -> Any:
    """A number of parameters as people write it: "120M", "7B"."""
    if isinstance(value, str) and value.strip()[-1:].upper() in _COUNT_UNITS:
        text = value.strip()
        with contextlib.suppress(ValueError):
            return round(float(text[:-1]) * _COUNT_UNITS[text[-1].upper()])
    return value


Result = Literal["checkpoint", Export]
Pass = Literal["decode", "prefill"]
TargetKind = Literal["parameters", "bytes", "memory_bytes", "max_perplexity_ratio", "speedup"]


class TargetSpec(_Strict):
    """What the result is to come to, in place of a sparsity: one of the first five."""

    parameters: Annotated[int, BeforeValidator(_count), Field(ge=1)] | None = Field(
        default=None, description='Most parameters of the result, such as 120000000 or "120M".'
    )
    bytes: int | None = Field(
        default=None, ge=1, description="Most bytes of the weights of the result that `of` names."
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of weights and KV cache together, of `batch_sequences` sequences "
        "of `context_tokens`.",
    )
    speedup: float | None = Field(
        default=None,
        gt=1.0,
        le=100.0,
        description="How many times as fast the result is to be, by the times of a device: "
        "`device` or `device_table`.",
    )
    max_perplexity_ratio: float | None = Field(
        default=None,
        gt=1.0,
        description="The most by which perplexity on the evaluation text may grow, as a factor. "
        "The smallest model that keeps it is found in `tries`.",
    )
    of: Literal[Result, Pass] = Field(
        default="checkpoint",
        description="What `bytes` counts: the checkpoint, or an export. Of `speedup`, what is to "
        "be faster: `decode` (the default), one token at a time, or `prefill`, a prompt.",
    )
    context_tokens: int = Field(
        default=4096,
        ge=1,
        le=2**24,
        description="Of `memory_bytes`, and of the `speedup` of `decode`: tokens of a sequence.",
    )
    batch_sequences: int = Field(
        default=1,
        ge=1,
        le=2**16,
        description="Of `memory_bytes` and `speedup`: sequences at once.",
    )
    device: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Of `speedup`: a table that is part of the package, by name; for the command "
        "also a file that `bench-device` wrote.",
    )
    device_table: DeviceTable | None = Field(
        default=None,
        description="Of `speedup`, in place of `device`: what a file of `bench-device` holds.",
    )
    tries: int = Field(
        default=3,
        ge=1,
        le=8,
        description="Of `max_perplexity_ratio`: how many sparsities are pruned and measured before "
        "the result. They share all that does not depend on the sparsity.",
    )

    @model_validator(mode="before")
    @classmethod
    def _decode_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("speedup") is not None:
            return {"of": "decode", **data}
        return data

    @model_validator(mode="after")
    def _one_of_them(self) -> TargetSpec:
        if len(self._given_kinds()) != 1:
            raise ValueError(f"give exactly one of {', '.join(get_args(TargetKind))}")
        if self.kind != "speedup" and self.of != "checkpoint" and self.bytes is None:
            raise Unfit("of belongs to bytes and speedup. Leave it out.", Mend("of", None))
        return self

    def _given_kinds(self) -> list[TargetKind]:
        return [name for name in get_args(TargetKind) if getattr(self, name) is not None]

    def _devices(self) -> list[str]:
        """The fields that name a device's times."""
        return [name for name in ("device", "device_table") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _device_belongs_to_speedup(self) -> TargetSpec:
        passes = get_args(Pass)
        if (self.of in passes) != (self.kind == "speedup"):
            raise Unfit(
                f"of is {' or '.join(passes)} for speedup, and for nothing else.", Mend("of", None)
            )
        given = len(self._devices())
        if self.kind == "speedup" and given != 1:
            raise Unfit(
                "speedup needs device or device_table, and not both.",
                *(Mend(name, None) for name in self._devices()),
            )
        if self.kind != "speedup" and given:
            raise Unfit(
                "device and device_table belong to speedup. Leave them out.",
                *(Mend(name, None) for name in self._devices() if given == 1),
            )
        return self

    @property
    def kind(self) -> TargetKind:
        """Which of them is given."""
        (kind,) = self._given_kinds()
        return kind

    @property
    def export(self) -> Export | None:
        """The export whose bytes are counted."""
        match self.of:
            case "checkpoint" | "decode" | "prefill":
                return None
            case export:
                return export

    @property
    def most(self) -> int:
        """What the result may come to, of a target that counts something."""
        value: int = getattr(self, self.kind)
        return value


class PruningSpec(_Strict):
    """What is removed and how the survivors are repaired."""

    structures: tuple[
        Literal[
            "ffn_channels",
            "kv_groups",
            "query_heads",
            "experts",
            "attention_blocks",
            "ffn_blocks",
            "layers",
        ],
        ...,
    ] = Field(
        default=("ffn_channels",),
        min_length=1,
        max_length=4,
        description="Structures to remove: `ffn_channels`, and of attention either `kv_groups` "
        "(a key-value head with its query heads: the KV cache shrinks) or `query_heads` (equally "
        "many of each key-value head). Whole blocks beside them or alone: `attention_blocks`, "
        "`ffn_blocks`, or `layers`, which are both at once (alone, their layout is `uniform`). Or "
        "`experts`: alone, equally many of every mixture-of-experts layer (layout `uniform`, the "
        "default for them) or by layer; or, equally many, beside `ffn_channels` (of dense layers "
        "and shared experts).",
    )
    expert_count: int | None = Field(
        default=None,
        ge=1,
        description="Of structures `experts`, in place of `sparsity`: experts that every layer "
        "keeps.",
    )
    sizes: tuple[Annotated[float, _Fraction, Field(gt=0.0, lt=1.0)], ...] = Field(
        default=(),
        max_length=MAX_SIZES,
        description="In place of `sparsity` several of them: the model is measured once, and a "
        "result is published for each in a folder of its own, named after it.",
    )
    target: TargetSpec | None = Field(
        default=None,
        description="In place of `sparsity` what the result is to come to: the sparsity follows "
        "from the model's files, and `validate` says it.",
    )
    sparsity: Annotated[float | None, _Fraction] = Field(
        default=None,
        validate_default=True,
        gt=0.0,
        lt=1.0,
        description="Fraction to remove of all parameters that belong to the chosen "
        "structures; with `ffn_channels` alone, of all FFN channels; with `experts` alone, of the "
        "routed experts of a layer. Required, unless `sizes`, `target` or `expert_count` is given.",
    )
    expert_score: ExpertScore | None = Field(
        default=None,
        description="What keeps an expert, averaged over the tokens that reach it: `reap` (the "
        "default), the norm of what it puts out times the router's weight; `output_norm`, the "
        "square of that norm alone. Experts that no token reaches go first.",
    )
    expert_repair: bool = Field(
        default=False,
        description="Change the down matrices of the experts that stay, by ridge regression on "
        "what the experts of the dense layer put out; a layer's are used if held-out text agrees.",
    )
    allocation: Literal["threshold", "softmax", "uniform"] = Field(
        default="threshold",
        description="How layers share the budget: `threshold` removes what costs the model "
        "least; `softmax` shares it by energy (both need layout `per_layer`); `uniform` removes "
        "the same fraction everywhere. The default is the one that fits the layout.",
    )
    temperature: float | None = Field(
        default=None,
        gt=0.0,
        le=1000.0,
        description="Of allocation `softmax`; by default the one that predicts least damage.",
    )
    energy: Energy = Field(
        default="kl_probe",
        description="What turns a layer's damage into the model's loss: `kl_probe` prunes each "
        "layer alone and looks at the output; `gradient` squares the loss's gradients, one pass "
        "back through the layers; `forward` uses the damage as it is.",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=8,
        description="How often widths are allocated. Each further round measures what a layer "
        "costs in the model pruned so far and allocates again; the round with the least held-out "
        "loss is used.",
    )
    solver: Literal["obs", "admm"] = Field(
        default="obs",
        description="Which structures a layer keeps: `obs` decides in one pass; `admm` starts from "
        "its choice, and replaces it where held-out tokens confirm that.",
    )
    recover: RecoverySpec | None = Field(
        default=None,
        description="Train each pruned FFN for a few steps; where blocks go, every FFN that "
        "is left. Omit to leave it out.",
    )
    distill: DistillationSpec | None = Field(
        default=None,
        description="Last, train all layers together towards the dense model's output, one layer "
        "in memory at a time. Each step costs a forward and a backward pass through the model. "
        "Omit to leave it out.",
    )
    layout: Literal["per_layer", "uniform"] = Field(
        default="per_layer",
        description="Shape of the checkpoint: `per_layer` widths (ships modelling code), or one "
        "`uniform` width that every runtime loads as it is.",
    )
    exports: tuple[Export, ...] = Field(
        default=(),
        max_length=4,
        description="Further forms of the result, each in its own folder beside it: `gguf`, "
        "one 16-bit file for llama.cpp; `gguf_q8_0`, the same with matrices in 8 bits (Q8_0); "
        "`fp8`, the checkpoint with matrices in FP8 (compressed-tensors); `block_configs`, a "
        "checkpoint whose per-layer widths vLLM and MLX understand, padded to multiples of 256 "
        "channels.",
    )
    damping: float | None = Field(
        default=None,
        gt=0.0,
        le=100.0,
        description="Ridge of the final solve relative to the Gram's mean diagonal. "
        "Default: 0.3 * 16384 / tokens that the site saw, clipped to [0.03, 3].",
    )
    min_keep_fraction: Annotated[float, _Fraction] = Field(
        default=0.1, gt=0.0, le=1.0, description="Fraction of each layer's channels always kept."
    )
    max_layer_sparsity: Annotated[float, _Fraction] = Field(
        default=1.0, gt=0.0, le=1.0, description="Largest fraction removed from any layer."
    )
    max_sparsity_by_layer: dict[Annotated[int, Field(ge=0)], Share] = Field(
        default_factory=dict,
        max_length=1024,
        description="The same for single layers, by number from 0; a fraction of 0 leaves a layer "
        "unpruned.",
    )
    multiple_of: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Kept widths are multiples of this (hardware tiles). GGUF needs 32 for Q8_0 "
        "and 256 for K-quants; FP8 kernels are fast from 16 on.",
    )

    @field_validator("sizes")
    @classmethod
    def _sizes_are_distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({size_label(sparsity) for sparsity in value}) != len(value):
            raise ValueError("one sparsity is listed twice")
        return value

    @field_validator("sparsity")
    @classmethod
    def _one_way_to_say_how_much(cls, value: float | None, info: ValidationInfo) -> float | None:
        others = ("sizes", "target", "expert_count")
        if not info.data.keys() >= {*others}:  # One is wrong, which is said already.
            return value
        given = [name for name in others if info.data[name]]
        if value is not None:
            given.insert(0, "sparsity")
        if not given:
            raise PydanticCustomError("missing", "Field required")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other. Leave one of them out.")
        return value

    @property
    def asked_sparsity(self) -> float:
        """The sparsity, of a job that has one: of several sizes see `JobSpec.by_size`."""
        assert self.sparsity is not None  # noqa: S101 - validated, but for several sizes
        return self.sparsity

    @model_validator(mode="before")
    @classmethod
    def _default_allocation(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        structures = data.get("structures")
        if isinstance(structures, list | tuple) and "experts" in structures:
            return {**_experts_layout(data), **data}
        if isinstance(structures, list | tuple) and list(structures) == ["layers"]:
            return {"allocation": "uniform", "layout": "uniform", **data}
        if "allocation" not in data and data.get("layout") == "uniform":
            return {**data, "allocation": "uniform"}
        return data

    def at(self, sparsity: float) -> PruningSpec:
        """The same with a sparsity, whatever it was to follow from."""
        return self.model_copy(update={"sparsity": sparsity, "sizes": ()})

    @property
    def removes_experts(self) -> bool:
        """Whether the job removes whole experts."""
        return "experts" in self.structures

    def _without(self, *kinds: str) -> Mend:
        return Mend("structures", [each for each in self.structures if each not in kinds])

    @property
    def removes_experts_alone(self) -> bool:
        """Whether it removes nothing else."""
        return set(self.structures) == {"experts"}

    @property
    def keeps_equal_experts(self) -> bool:
        """Whether every layer keeps equally many experts, and config.json says how many."""
        return self.layout == "uniform" or not self.removes_experts_alone

    @property
    def removes_blocks(self) -> bool:
        """Whether the job removes attention or FFN blocks or layers."""
        return bool(_BLOCKS & set(self.structures))

    @property
    def removes_blocks_alone(self) -> bool:
        """Whether it removes nothing else."""
        return set(self.structures) <= _BLOCKS

    @model_validator(mode="after")
    def _blocks_fit(self) -> PruningSpec:
        if not self.removes_blocks or self.removes_experts:
            return self
        if "layers" in self.structures and len(_BLOCKS & set(self.structures)) > 1:
            raise Unfit(
                "structures 'layers' are attention and FFN blocks at once. Leave out 'layers', or "
                "'attention_blocks' and 'ffn_blocks'.",
                self._without("layers"),
                self._without("attention_blocks", "ffn_blocks"),
            )
        if not self.removes_blocks_alone and self.allocation == "uniform":
            raise Unfit(
                "allocation 'uniform' has no price by which blocks and other structures could be "
                "compared. Use allocation 'threshold', or remove blocks alone.",
                Mend("allocation", "threshold"),
                self._without(*(set(self.structures) - _BLOCKS)),
            )
        if self.layout == "uniform" and set(self.structures) != {"layers"}:
            raise Unfit(
                "layout 'uniform' has the same blocks in all layers. Use layout 'per_layer', or "
                "structures ['layers'].",
                Mend("layout", "per_layer"),
                Mend("structures", ["layers"]),
            )
        if self.rounds > 1:
            raise Unfit(
                "rounds are not implemented for blocks, which are measured one after another "
                "anyway. Leave rounds out.",
                Mend("rounds", None),
            )
        if self.removes_blocks_alone:
            solving = {
                "allocation 'softmax'": self.allocation == "softmax",
                "energy": self.energy != "kl_probe",
                "solver": self.solver != "obs",
                "damping": self.damping is not None,
                "temperature": self.temperature is not None,
                "multiple_of": self.multiple_of > 1,
            }
            for name, asked in solving.items():
                if asked:
                    raise Unfit(
                        f"{name} is not used where blocks alone go. Leave it out.",
                        Mend(name.split()[0], None),
                    )
        return self

    @model_validator(mode="after")
    def _experts_go_alone(self) -> PruningSpec:
        if not self.removes_experts:
            for name in ("expert_score", "expert_repair", "expert_count"):
                if getattr(self, name):
                    raise Unfit(f"{name} is only used by structures ['experts'].", Mend(name, None))
            return self
        if not self.removes_experts_alone:
            self._experts_fit_others()
            return self
        others = {
            "rounds": self.rounds > 1,
            "solver": self.solver != "obs",
            "distill": self.distill is not None,
            "exports": bool(self.exports),
            "damping": self.damping is not None,
        }
        for name, asked in others.items():
            if asked:
                raise Unfit(
                    f"{name} is not implemented for structures 'experts'. Leave it out.",
                    Mend(name, None),
                )
        if self.layout == "per_layer" and self.allocation == "uniform":
            raise Unfit(
                "layout 'per_layer' of experts needs an allocation that gives layers different "
                "numbers. Use allocation 'threshold', or layout 'uniform'.",
                Mend("allocation", "threshold"),
                Mend("layout", "uniform"),
            )
        if self.layout == "per_layer" and self.expert_count is not None:
            raise Unfit(
                "expert_count is the number of every layer. Use layout 'uniform', or a sparsity in "
                "its place.",
                Mend("layout", "uniform"),
            )
        if self.layout == "uniform" and self.max_sparsity_by_layer:
            raise Unfit(
                "max_sparsity_by_layer needs layers with different numbers of experts. Use layout "
                "'per_layer'.",
                Mend("layout", "per_layer"),
            )
        return self

    def _experts_fit_others(self) -> None:
        """Experts beside FFN channels; what of it is not implemented."""
        if "kv_groups" in self.structures or "query_heads" in self.structures:
            raise Unfit(
                "structures 'experts' cannot be removed together with heads: experts are removed "
                "while transformers' own modules run, which hide heads. Remove them alone, and "
                "prune the result in a second job.",
                Mend("structures", ["experts"]),
            )
        if self.removes_blocks:
            raise Unfit(
                "structures 'experts' cannot be removed together with blocks or layers: both are "
                "measured as numbers that go, and only one of them shares a budget with channels. "
                "Remove them alone, and prune the result in a second job.",
                Mend("structures", ["experts"]),
            )
        others = {
            "rounds": self.rounds > 1,
            "recover": self.recover is not None,
            "distill": self.distill is not None,
            "exports": bool(self.exports),
            "expert_repair": self.expert_repair,
            "max_sparsity_by_layer": bool(self.max_sparsity_by_layer),
        }
        for name, asked in others.items():
            if asked:
                raise Unfit(
                    f"{name} is not implemented for structures 'experts' beside others. Leave it "
                    f"out.",
                    Mend(name, None),
                )
        if self.expert_count is not None:
            raise Unfit(
                "expert_count leaves nothing to decide between experts and other structures. Use a "
                "sparsity, or remove experts alone.",
                Mend("structures", ["experts"]),
            )
        needed = {"allocation": ("uniform", "threshold"), "energy": ("forward", "kl_probe")}
        for name, (unfit, usual) in needed.items():
            if getattr(self, name) == unfit:
                raise Unfit(
                    "experts and channels are compared by the model's loss, which needs allocation "
                    "'threshold' or 'softmax' and energy 'kl_probe' or 'gradient'.",
                    Mend(name, usual),
                )

    @model_validator(mode="after")
    def _structures_are_distinct(self) -> PruningSpec:
        if len(set(self.structures)) != len(self.structures):
            once = [*dict.fromkeys(self.structures)]
            raise Unfit("structures lists one kind twice", Mend("structures", once))
        if {"kv_groups", "query_heads"} <= set(self.structures):
            raise Unfit(
                "structures 'kv_groups' and 'query_heads' exclude each other. Choose one of them.",
                self._without("query_heads"),
                self._without("kv_groups"),
            )
        return self

    @model_validator(mode="after")
    def _target_is_written(self) -> PruningSpec:
        of = None if self.target is None else self.target.export
        if of is not None and of not in self.exports:
            raise Unfit(
                f"target.of '{of}' is not written. Add it to exports.",
                Mend("exports", [*self.exports, of]),
            )
        return self

    @model_validator(mode="after")
    def _search_is_by_sites_alone(self) -> PruningSpec:
        if self.max_perplexity_ratio is None:
            return self
        if self.removes_experts or self.removes_blocks:
            left = self._without("experts", *_BLOCKS)
            raise Unfit(
                "target.max_perplexity_ratio is found among numbers of FFN channels and heads. "
                "Leave other structures out, or give a sparsity or sizes.",
                left if left.value else Mend("structures", ["ffn_channels"]),
            )
        if self.layout == "uniform" and set(self.structures) != {"ffn_channels"}:
            raise Unfit(
                "a uniform layout allows few numbers of heads, so that nothing can be searched "
                "for. Give sizes in place of target.max_perplexity_ratio, or layout 'per_layer'.",
                Mend("layout", "per_layer"),
            )
        return self

    @property
    def max_perplexity_ratio(self) -> float | None:
        """By how much perplexity may grow, of a job that looks for the sparsity; else None."""
        return None if self.target is None else self.target.max_perplexity_ratio

    @model_validator(mode="after")
    def _exports_are_distinct(self) -> PruningSpec:
        if len(set(self.exports)) != len(self.exports):
            once = [*dict.fromkeys(self.exports)]
            raise Unfit("exports lists one kind twice", Mend("exports", once))
        return self

    @model_validator(mode="after")
    def _recovery_has_something_to_train(self) -> PruningSpec:
        trained = "ffn_channels" in self.structures or self.removes_blocks
        if self.recover is not None and not trained:
            raise Unfit(
                "recover trains pruned FFNs, but structures lacks 'ffn_channels'. Add it, or leave "
                "recover out.",
                Mend("structures", [*self.structures, "ffn_channels"]),
                Mend("recover", None),
            )
        return self

    @model_validator(mode="after")
    def _temperature_belongs_to_softmax(self) -> PruningSpec:
        if self.temperature is not None and self.allocation != "softmax":
            raise Unfit(
                "temperature is only used by allocation 'softmax'. Leave it out.",
                Mend("temperature", None),
            )
        return self

    @model_validator(mode="after")
    def _rounds_need_a_price(self) -> PruningSpec:
        if self.rounds > 1 and self.allocation == "uniform":
            raise Unfit(
                "rounds reset the price between layers, which allocation 'uniform' does without. "
                "Leave rounds out, or use allocation 'threshold' or 'softmax'.",
                Mend("rounds", None),
                Mend("allocation", "threshold"),
            )
        return self

    @model_validator(mode="after")
    def _layout_fits_allocation(self) -> PruningSpec:
        if self.layout == "uniform" and self.allocation != "uniform":
            raise Unfit(
                f"layout 'uniform' keeps one width for all layers, which allocation "
                f"'{self.allocation}' does not give. Use allocation 'uniform', or layout "
                f"'per_layer'.",
                Mend("allocation", "uniform"),
                Mend("layout", "per_layer"),
            )
        return self


class CalibrationSpec(_Strict):
    """What the statistics are computed on. One sequence in 16 is held out to judge layers."""

    source: Literal["file", "self"] = Field(
        default="file",
        description="`file`: text in storage, at `uri`. `self`: text that the dense model itself "
        "writes, so that no data is needed; its weights are read once per token of a sequence.",
    )
    uri: Uri | None = Field(default=None, description="One object; absent for source `self`.")
    format: Literal["auto", "text", "jsonl", "parquet"] = Field(
        default="auto",
        description="`text` is plain UTF-8; `jsonl` and `parquet` hold a document in each line or "
        "row. `auto` goes by the name: .jsonl, .ndjson, .json, .parquet, else text.",
    )
    field: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Field or column of each document. Default: `text`, with `chat_template` "
        "`messages`.",
    )
    chat_template: bool = Field(
        default=False,
        description="Documents are conversations, lists of {role, content}; each is written out "
        "by the model's own chat template.",
    )
    samples: int = Field(default=32, ge=MIN_SAMPLES, le=65536, description="Sequences to draw.")
    sequence_length: int = Field(default=512, ge=8, le=131072, description="Tokens per sequence.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draw.")
    allow_degenerate: bool = Field(
        default=False,
        description="Accept a text with hardly any distinct tokens, which is otherwise refused.",
    )

    @property
    def place(self) -> str:
        """The field of a job that names the text."""
        return "calibration.source" if self.source == "self" else "calibration.uri"

    @property
    def file_format(self) -> FileFormat:
        """The format, with `auto` resolved by the object's name."""
        if self.format != "auto":
            return self.format
        _, _, extension = (self.uri or "").rpartition(".")
        return _FORMATS.get(extension.lower(), "text")

    @property
    def document_field(self) -> str:
        """The field that holds a document, with the default resolved."""
        return self.field or ("messages" if self.chat_template else "text")

    @model_validator(mode="after")
    def _parts_fit(self) -> CalibrationSpec:
        if self.source == "self":
            given = {"uri", "format", "field", "chat_template"} & self.model_fields_set
            if any(getattr(self, name) not in (None, False, "auto") for name in given):
                raise Unfit(
                    f"source 'self' reads no file; leave out {', '.join(sorted(given))}.",
                    *(Mend(name, None) for name in given if len(given) == 1),
                    *([Mend("source", "file")] if self.uri is not None else ()),
                )
            return self
        if self.uri is None:
            raise Unfit(
                "uri is missing. Name a text, or use source 'self'.", Mend("source", "self")
            )
        if self.file_format == "text":
            for name in ("chat_template", "field"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} needs documents with fields, and the text is plain. Use a jsonl "
                        f"or parquet file, and set format if its name does not show which it is."
                    )
        return self


class EvaluationSpec(_Strict):
    """Text that perplexity is reported on: consecutive windows from its start."""

    uri: Uri = Field(description="Text to report perplexity on, before and after.")
    sequences: int = Field(default=24, ge=1, le=65536, description="Windows, from the start.")
    sequence_length: int = Field(default=1024, ge=8, le=131072, description="Tokens per window.")
    max_perplexity_ratio: float = Field(
        default=10.0,
        gt=1.0,
        description="The job fails, and publishes nothing, if pruned / dense perplexity is higher.",
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=32,
        description="Tasks of lm-evaluation-harness to judge by, before and after: by the "
        "harness's names, or of `task_files`.",
    )
    task_files: Uri | None = Field(
        default=None,
        description="Prefix with task files, `NAME.yaml` and its data: tasks named there come from "
        "there.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Documents of each task, from the first; all if null.",
    )
    num_fewshot: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Examples before each document of a task; null: as the task says.",
    )
    min_task_retention: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="The job fails, and publishes nothing, if less of the dense model's accuracy "
        "on the tasks above chance is kept.",
    )
    samples: bool = Field(
        default=False,
        description="Show side by side how the dense and the pruned model continue prompts, with "
        "the most probable token each time. The weights are read about once per token.",
    )
    prompts: tuple[Prompt, ...] = Field(
        default=(),
        max_length=MAX_PROMPTS,
        description="What samples continue, as plain text. Default: a few short ones in English.",
    )
    sample_tokens: int = Field(
        default=48, ge=1, le=256, description="Most tokens of a sample; the text may end before."
    )
    speed: bool = Field(
        default=False,
        description="Measure how fast both models are in transformers, in turns, and what memory "
        "they take. Both are loaded whole, so it is left out, with a warning, where memory does "
        "not allow that.",
    )

    @model_validator(mode="after")
    def _tasks_belong_together(self) -> EvaluationSpec:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks names a task twice")
        for name in ("task_files", "limit", "num_fewshot", "min_task_retention"):
            if getattr(self, name) is not None and not self.tasks:
                raise Unfit(
                    f"{name} is about tasks: name some in tasks, or leave it out", Mend(name, None)
                )
        return self

    @model_validator(mode="after")
    def _prompts_belong_to_samples(self) -> EvaluationSpec:
        for name in ("prompts", "sample_tokens"):
            default = type(self).model_fields[name].default
            if not self.samples and getattr(self, name) != default:
                raise Unfit(
                    f"{name} is about samples: set samples to true, or leave it out.",
                    Mend("samples", True),
                    Mend(name, None),
                )
        return self

    @property
    def sampled_prompts(self) -> tuple[str, ...]:
        """What both models continue; nothing if samples are not asked for."""
        return (self.prompts or DEFAULT_PROMPTS) if self.samples else ()


class RuntimeSpec(_Strict):
    """How the job runs.

    Device, precision, micro-batch and memory change rounding, nothing else the result.
    """

    device: DeviceName = Field(
        default="auto",
        description="Where tensors are computed: `cpu`, `cuda`, `cuda:1` for the GPU of that "
        "number (not in a service, whose workers have one each), or `auto`: a GPU if there is one.",
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        default="auto",
        description="What matrix products of layers are computed in. `bfloat16`: from operands of "
        "16 bits, summed in float32; everything else in float32. `tf32`: of a GPU. `auto`: "
        "bfloat16 on CUDA for a model that is stored in 16 bits (not in transformers' modules), "
        "else float32.",
    )
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=8,
        le=2**20,
        description="Most tokens pushed through a layer at a time; null: 4,096, or with a memory "
        "limit what fits.",
    )
    device_memory_bytes: int | None = Field(
        default=None,
        ge=2**20,
        description="Most bytes held on the device; on the CPU, by tensors. The job runs in the "
        "largest pieces that fit, or is refused with the smallest amount that suffices. null: on a "
        "GPU what is free there, or what the service sets for `cuda`; on the CPU no limit.",
    )
    host_memory_bytes: int | None = Field(
        default=None,
        ge=2**20,
        description="Most bytes of host memory that the process holds, without file-backed pages.",
    )
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Which of the waiting jobs a service starts first."
    )
    deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DEADLINE_SECONDS,
        description="The job fails if it has not ended this long after its first start. Pauses and "
        "waits between attempts count; the wait before the first start does not. A retry starts "
        "the time again.",
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="How often a service starts the job before it gives up."
    )
    max_workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many of a service's workers may serve the job at once. Workers without a "
        "job help with layers that do not depend on each other; the result is the same.",
    )

    @model_validator(mode="after")
    def _tf32_is_of_gpus(self) -> RuntimeSpec:
        if self.precision == "tf32" and self.device == "cpu":
            raise Unfit(
                "tf32 is a mode of GPUs. On a CPU use auto or float32.", Mend("precision", "auto")
            )
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether the job asks for a GPU, whichever."""
        return is_gpu(self.device)


class JobSpec(_Strict):
    """A whole pruning job: what a client POSTs and what `strucprune_core.prune` runs."""

    model: ModelSpec
    output: OutputSpec
    pruning: PruningSpec
    calibration: CalibrationSpec
    evaluation: EvaluationSpec | None = Field(
        default=None, description="Omit to skip the perplexity report (and its quality gate)."
    )
    runtime: RuntimeSpec = RuntimeSpec()
    name: Name | None = Field(
        default=None,
        description="What people call the job: in lists, the report and webhooks. It need not be "
        "unique.",
    )
    labels: dict[
        Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=255)]
    ] = Field(default_factory=dict, max_length=64, description="Names and values to find jobs by.")

    @model_validator(mode="after")
    def _search_is_measured(self) -> JobSpec:
        ratio = self.pruning.max_perplexity_ratio
        if ratio is None:
            return self
        if self.evaluation is None:
            raise ValueError(
                "pruning.target.max_perplexity_ratio is measured on the evaluation text. Add "
                "evaluation.uri."
            )
        if ratio > self.evaluation.max_perplexity_ratio:
            raise Unfit(
                f"pruning.target.max_perplexity_ratio is {ratio:g}, but more than "
                f"{self.evaluation.max_perplexity_ratio:g} is never published. Ask for less, or "
                "raise evaluation.max_perplexity_ratio.",
                Mend("evaluation.max_perplexity_ratio", ratio),
            )
        return self

    @property
    def tries(self) -> int:
        """How many sparsities are tried before that of the result is known; 0 if it is given."""
        target = self.pruning.target
        return 0 if target is None or target.max_perplexity_ratio is None else target.tries

    @property
    def sampled_prompts(self) -> tuple[str, ...]:
        """What both models continue; nothing if samples are not asked for."""
        return () if self.evaluation is None else self.evaluation.sampled_prompts

    @property
    def judges_by_tasks(self) -> bool:
        """Whether both models are judged by tasks."""
        return self.evaluation is not None and bool(self.evaluation.tasks)

    @property
    def measures_speed(self) -> bool:
        """Whether both models' speed is measured."""
        return self.evaluation is not None and self.evaluation.speed

    def by_size(self) -> dict[str, JobSpec]:
        """The job of each size, by its label: as if it were the only one. "" where it is."""
        if not self.pruning.sizes:
            return {"": self}
        return {size_label(sparsity): self.at(sparsity) for sparsity in self.pruning.sizes}

    def at(self, sparsity: float) -> JobSpec:
        """The job of one size."""
        return self.model_copy(update={"pruning": self.pruning.at(sparsity)})

    def result_fingerprint(self) -> str:
        """SHA-256 (hex) over the fields that determine the result, of several sizes each result.

        So a job of several sizes may be continued by one with others: it shares its measurements.

        `runtime`, `name`, `labels` and the output place are left out, so that a job may resume on
        another device or with another output; so is what only decides whether a text is refused.
        """
        relevant = self.model_dump(mode="json", include={"pruning", "calibration", "evaluation"})
        del relevant["calibration"]["allow_degenerate"]
        if self.evaluation is not None and not self.evaluation.samples:
            for name in ("samples", "prompts", "sample_tokens"):
                del relevant["evaluation"][name]  # As in versions that had no samples.
        if self.evaluation is not None and not self.evaluation.speed:
            del relevant["evaluation"]["speed"]
        if self.evaluation is not None and not self.evaluation.tasks:
            # As before there were tasks, so that workspaces of such jobs stay usable.
            for name in ("tasks", "task_files", "limit", "num_fewshot", "min_task_retention"):
                del relevant["evaluation"][name]
        if self.pruning.sizes:
            relevant["pruning"]["sizes"] = "several"
        else:
            del relevant["pruning"]["sizes"]  # As in versions that had one size alone.
        if self.tries:  # The sparsity that is planned with determines nothing.
            target = relevant["pruning"]["target"]
            wanted = {name: target[name] for name in ("max_perplexity_ratio", "tries")}
            relevant["pruning"] |= {"sparsity": None, "target": wanted}
        else:
            del relevant["pruning"]["target"]  # The sparsity follows from it.
        relevant["model"] = self.model.uri
        if self.model.adapter_uri is not None:
            relevant["adapter"] = self.model.adapter_uri
        if self.output.dtype is not None:
            relevant["dtype"] = self.output.dtype
        canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def field_defaults(section: type[BaseModel], path: str = "") -> dict[str, Any]:
    """The defaults of a job's fields as JSON, by dotted path; without those that are null.

    The layout and the allocation of a job that removes experts have others (`PruningSpec`).

    Args:
        section: `JobSpec`, or one of its sections.
        path: Before the names of its fields, with a dot at its end.
    """
    defaults: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inside = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, _Strict)]
        if inside:
            defaults |= field_defaults(inside[0], f"{path}{name}.")
        elif not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data={})
            if default is not None:
                defaults[f"{path}{name}"] = to_jsonable_python(default)
    return defaults
