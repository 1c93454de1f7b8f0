"""What phases and units do, in plain English. Their names stay as they are: programs use them."""

from __future__ import annotations

from strucprune_core.plan.graph import SIZE_MARK, plain_name
from strucprune_core.plan.search import TRY
from strucprune_core.run.progress import Phase

PHASE_TITLES: dict[Phase, str] = {
    Phase.INSPECTING: "Inspecting the model",
    Phase.CALIBRATING: "Measuring the dense model on the calibration text",
    Phase.ALLOCATING: "Deciding how much goes from each layer",
    Phase.SOLVING: "Pruning and repairing layers",
    Phase.EVALUATING: "Evaluating",
    Phase.UPLOADING: "Writing files of the result",
    Phase.COMMITTING: "Checking and publishing the result",
}

# By kind. {0} is the first part of the name after the kind, {1} the second.
UNIT_TITLES: dict[str, str] = {
    "model_check": "Compare the dense model with transformers",
    "weights": "Check that all weights are finite",
    "tokens": "Turn the calibration text into tokens",
    "tokens.evaluation": "Turn the evaluation text into tokens",
    "embed": "Compute the input of the first layer",
    "capture": "Measure layer {0} on the calibration text",
    "route": "Measure the experts of layer {0}",
    "curve": "Compute what pruning costs in layer {0}",
    "select": "Choose the experts that stay",
    "repair": "Repair the experts of layer {0}",
    "divergence": "Check what the removed experts change",
    "expert_probe": "Measure the model with fewer experts",
    "block_probe": "Measure the model without single blocks, group {0} of layers",
    "drop": "Choose block {0} that goes",
    "probe": "Measure how sensitive layers are, group {0}",
    "gradient": "Compute gradients, group {0} of layers",
    "price": "Compute widths of layers, round {0}",
    "search": "Choose the sparsity to try, try {0}",
    "trial": "Try layer {1} at the widths of round {0}",
    "review": "Measure how sensitive pruned layers are, round {0}, group {1}",
    "allocate": "Fix the widths of layers",
    "solve": "Prune and repair layer {0}",
    "refit": "Repair layer {0} for the removed blocks before it",
    "replay": "Compute the input of the first layer for training",
    "recover": "Train layer {0}",
    "distill": "Train the whole model, part {0}",
    "assemble": "Write file {0} of the checkpoint",
    "gguf": "Write the export gguf",
    "gguf_q8_0": "Write the export gguf_q8_0",
    "block_configs": "Write file {0} of the export block_configs",
    "fp8": "Write file {0} of the export fp8",
    "verify": "Compare the written checkpoint with transformers",
    "check": "Check the export {0}",
    "evaluate": "Measure perplexity: {0}",
    "tasks": "Run tasks: {0}",
    "samples": "Write sample texts: {0}",
    "speed": "Measure speed and memory",
    "report": "Write the report",
    "sizes": "Write the report on all sizes",
    "publish": "Copy the result to the output",
}


def phase_title(phase: str) -> str:
    """What a phase does; its name if it is one of another release."""
    return PHASE_TITLES[Phase(phase)] if phase in [*Phase] else phase


def unit_title(unit: str) -> str:
    """What a unit does; its name if it is of a kind of another release."""
    plain = plain_name(unit)
    kind = max((kind for kind in UNIT_TITLES if _is_of(plain, kind)), key=len, default="")
    parts = plain.removeprefix(kind).removeprefix(".").split(".")
    try:
        title = UNIT_TITLES[kind].format(*parts)
    except (KeyError, IndexError):
        return unit
    size = unit.partition(SIZE_MARK)[2]
    if not size or kind == "sizes":
        return title
    number = size.removeprefix(TRY)
    return f"{title}, size {size}" if number == size else f"{title}, try {number}"


def _is_of(plain: str, kind: str) -> bool:
    return plain == kind or plain.startswith(f"{kind}.")
