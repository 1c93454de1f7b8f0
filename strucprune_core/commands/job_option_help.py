"""How help shows the options of a job: heading, type, unit, limits, default. No torch.

Texts are the descriptions of the fields, which REST and Python show too. A field that a description
names is shown as the option that sets it. `_HELP` has what the command says in other words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from strucprune_core.commands.job_options import JobOption, Path_, option_of
from strucprune_core.plan.device_table import shipped_tables
from strucprune_core.spec import DEVICES

_HEADINGS: dict[Path_, str] = {
    ("model",): "Model",
    ("output",): "Result",
    ("pruning",): "Method",
    ("pruning", "target"): "How much to remove: one of these",
    ("pruning", "recover"): "Training after pruning",
    ("pruning", "distill"): "Training after pruning",
    ("calibration",): "Calibration text",
    ("evaluation",): "Evaluation",
    ("runtime",): "Device and memory",
    (): "For a service",
}
# Fields that are not under the heading of their section.
_OTHER_HEADINGS: dict[Path_, str] = {
    **dict.fromkeys(
        [("pruning", name) for name in ("sparsity", "sizes", "expert_count")],
        "How much to remove: one of these",
    ),
    **dict.fromkeys(
        [("pruning", name) for name in ("structures", "expert_score", "expert_repair")],
        "What to remove",
    ),
    **dict.fromkeys(
        [
            ("pruning", name)
            for name in (
                "min_keep_fraction",
                "max_layer_sparsity",
                "max_sparsity_by_layer",
                "multiple_of",
            )
        ],
        "Limits of layers",
    ),
    ("name",): "Result",
    ("pruning", "layout"): "Result",
    ("pruning", "exports"): "Result",
    **dict.fromkeys(
        [
            ("evaluation", name)
            for name in ("tasks", "task_files", "limit", "num_fewshot", "min_task_retention")
        ],
        "Evaluation by tasks",
    ),
    **dict.fromkeys(
        [
            ("runtime", name)
            for name in ("priority", "deadline_seconds", "max_attempts", "max_workers")
        ],
        "For a service",
    ),
}
HEADINGS = (
    "Model",
    "Result",
    "How much to remove: one of these",
    "What to remove",
    "Calibration text",
    "Evaluation",
    "Evaluation by tasks",
    "Method",
    "Limits of layers",
    "Training after pruning",
    "Device and memory",
    "For a service",
)
"""All of them, in the order in which help shows them."""

# Where the command says it in other words than the field.
_HELP: dict[Path_, str] = {
    ("model", "uri"): "The same as MODEL.",
    ("model", "adapter_uri"): "LoRA adapter of PEFT to merge into the model as it is read: "
    "directory, s3:// or hf://.",
    ("output", "uri_prefix"): "Where the smaller model goes: an empty directory, or s3://bucket/"
    "prefix.",
    ("output", "dtype"): "Convert weights to this type as they are read, and store them so. By "
    "default the model's own; of a quantised model bfloat16.",
    ("pruning", "sparsity"): "Fraction to remove of the parameters of the chosen structures, such "
    "as 0.3.",
    ("pruning", "sizes"): "Give it several times to make several sizes from one measurement, each "
    "in a folder of its own.",
    ("pruning", "expert_count"): "Experts that every layer keeps.",
    ("pruning", "target", "parameters"): "The result may have so many parameters: 120M, 7B.",
    ("pruning", "target", "bytes"): "The result's weights may take so many bytes: 2GB, 1.5GiB.",
    ("pruning", "target", "memory_bytes"): "Weights and KV cache together may take so many bytes.",
    ("pruning", "target", "max_perplexity_ratio"): "Perplexity on the evaluation text may grow by "
    "this factor; the smallest model that keeps it is looked for.",
    ("pruning", "target", "speedup"): "How many times as fast the result is to be, on "
    "--target-device.",
    ("pruning", "target", "device"): "Of --target-speedup: a table of the package "
    f"({', '.join(shipped_tables())}), or a file of bench-device.",
    ("pruning", "target", "context_tokens"): "Tokens of a sequence in that KV cache.",
    ("pruning", "target", "batch_sequences"): "Sequences in that KV cache.",
    ("pruning", "structures"): "What is removed; may be given several times. `kv_groups` also "
    "shrinks the KV cache, `layers` and blocks go whole, `experts` are those of a mixture.",
    ("pruning", "expert_score"): "By which score an expert stays. Default: `reap`, what it puts "
    "out times the router's weight.",
    ("pruning", "damping"): "Strength of the ridge when the remaining weights are solved again. By "
    "default it follows from the number of tokens.",
    ("pruning", "max_sparsity_by_layer"): "Largest fraction removed from one layer, such as 3=0.1; "
    "0=0 leaves layer 0 as it is. May be given several times.",
    ("pruning", "exports"): "Further forms of the result, each in a folder of its own: `gguf` and "
    "`gguf_q8_0` for llama.cpp, `fp8`, `block_configs` for vLLM and MLX. May be given several "
    "times.",
    ("pruning", "recover", "steps"): "Train each pruned layer for so many steps; 0 leaves it out.",
    ("pruning", "distill", "steps"): "Last, train the whole model for so many steps; 0 leaves it "
    "out.",
    ("calibration", "uri"): "Text that layers are measured on: UTF-8, JSON lines or parquet; or "
    "`self`, text that the model writes (a file of that name is ./self).",
    ("calibration", "chat_template"): "Documents are conversations, lists of {role, content}, "
    "written out by the model's chat template.",
    ("evaluation", "uri"): "Text whose perplexity is measured before and after.",
    ("evaluation", "max_perplexity_ratio"): "Fail, and publish nothing, if perplexity grows by a "
    "larger factor.",
    ("evaluation", "tasks"): "Task of lm-evaluation-harness to judge both models by; may be given "
    "several times.",
    ("evaluation", "task_files"): "Directory, s3:// or hf:// prefix with task files, NAME.yaml.",
    ("evaluation", "limit"): "Documents of each task, from the first. By default all.",
    ("evaluation", "num_fewshot"): "Examples before each document. By default as the task says.",
    ("evaluation", "prompts"): "What samples continue; may be given several times. By default six "
    "short prompts in English.",
    (
        "runtime",
        "device",
    ): "Where tensors are computed; cuda:1: the GPU of that number; auto: a GPU if there is one.",
    ("runtime", "device_memory_bytes"): "Most memory on the device; on the CPU, of tensors. The "
    "job is split into pieces that fit, or refused with the least that would do.",
    ("labels",): "A name and a value to find jobs by; may be given several times.",
}
# Defaults that the option has and the field has not.
_DEFAULTS: dict[Path_, str] = {
    ("pruning", "recover", "steps"): "0",
    ("pruning", "distill", "steps"): "0",
}
_DEVICE: Path_ = ("runtime", "device")
_UNITS = {"steps": "STEPS", "seconds": "SECONDS", "tokens": "TOKENS", "length": "TOKENS"}
# A larger limit is one of computers, which help need not show.
_LARGEST_LIMIT = 2**31
_NAMED = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)`")


def heading_of(option: JobOption) -> str:
    """The heading under which help shows an option."""
    return _OTHER_HEADINGS.get(option.path) or _HEADINGS[option.path[:-1]]


def order_of(option: JobOption) -> tuple[int, bool]:
    """Where an option stands in help: sorts by headings, and a sparsity before what replaces it."""
    return HEADINGS.index(heading_of(option)), option.path != ("pruning", "sparsity")


def help_of(option: JobOption) -> str:
    """What an option is for, its limits and its default."""
    text = _HELP.get(option.path) or option.field.description or ""
    notes = [*_default(option), *_limits(option)]
    notes_text = f" [{'; '.join(notes)}]" if notes else ""
    return as_options(text, option.path) + notes_text


def as_options(text: str, path: Path_ = ()) -> str:
    """A text in which fields are named by the options that set them.

    Args:
        text: Names fields in backticks: `sizes`, `target.bytes`.
        path: The field that it is about; names are looked for beside it first.
    """

    def named(found: re.Match[str]) -> str:
        name = tuple(found[1].split("."))
        places = [(*path[:end], *name) for end in range(len(path) - 1, -1, -1)]
        return next((option for place in places if (option := option_of(place))), found[0])

    return _NAMED.sub(named, text)


def metavar_of(option: JobOption) -> str:
    """What is written after an option: choices, or the unit of its value."""
    kind = option.kind
    if get_origin(kind) is dict:
        return "NAME=VALUE" if option.path == ("labels",) else "LAYER=FRACTION"
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if choices := choices_of(option):
        return f"[{'|'.join(choices)}{'|cuda:N' if option.path == _DEVICE else ''}]"
    if option.is_size:
        return "SIZE"
    name = option.path[-1]
    if kind is str:
        return "URI" if name.startswith("uri") or name.endswith(("uri", "files")) else "TEXT"
    if kind is float:
        return (
            "FRACTION"
            if _bounds(option).get("at most", _bounds(option).get("below")) == 1
            else "NUMBER"
        )
    return _UNITS.get(name.rpartition("_")[2], "NUMBER")


def choices_of(option: JobOption) -> tuple[str, ...]:
    """The values that an option may have; none if they are not listed."""
    if option.path == _DEVICE:
        return DEVICES
    kind = option.kind
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _default(option: JobOption) -> Iterator[str]:
    if option.path in _DEFAULTS:
        yield f"default: {_DEFAULTS[option.path]}"
        return
    field = option.field
    default = field.get_default(call_default_factory=True, validated_data={})
    if not field.is_required() and default not in (None, False, (), {}):
        yield f"default: {', '.join(default) if isinstance(default, tuple) else _plain(default)}"


def _limits(option: JobOption) -> Iterator[str]:
    if option.is_size or option.kind not in (int, float):
        return
    bounds = _bounds(option)
    if "at least" in bounds and "at most" in bounds:
        yield f"{_plain(bounds.pop('at least'))} to {_plain(bounds.pop('at most'))}"
    for word, value in bounds.items():
        if (word, value) != ("at least", 1) and value < _LARGEST_LIMIT:
            yield f"{word} {_plain(value)}"


def _plain(value: object) -> str:
    """A number as people write it: 10 for 10.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def _bounds(option: JobOption) -> dict[str, Any]:
    """Between what a number must lie, in words."""
    found: dict[str, Any] = {}
    for constraint in (*option.field.metadata, *_constraints(option.field.annotation)):
        for attribute, word in _BOUNDS:
            if (value := getattr(constraint, attribute, None)) is not None:
                found[word] = value
    return found


def _constraints(annotation: Any) -> Iterator[Any]:
    """What the `Annotated` parts of a type hold."""
    arguments: Sequence[Any] = get_args(annotation)
    if get_origin(annotation) is Annotated:
        for each in arguments[1:]:
            yield from getattr(each, "metadata", ())
            yield each
        arguments = arguments[:1]
    for each in arguments:
        yield from _constraints(each)
