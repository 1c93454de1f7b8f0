"""Which precision a job computes in: from its specification, its model and the device. No torch.

`auto` is bfloat16 on CUDA if the model is stored in 16 bits and its family is written out, else
float32. So nothing changes on a CPU, and no model is rounded that is stored in more bits. A model
in transformers' modules is left in float32, since some of its class may not bear rounding; a job
that asks for bfloat16 gets it, and is refused where a layer rounds the residual stream.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Literal

from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.models.precision import Precision, is_operand, operand_bytes
from strucprune_core.models.tensors import layer_tensors, tensor_name
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.spec import JobSpec

Device = Literal["cpu", "cuda"]

FIELD = "runtime.precision"
_SIXTEEN_BITS = 2  # Bytes.


def precision_of(spec: JobSpec, facts: ModelFacts, device: Device) -> Precision:
    """What a job computes in on a device.

    Raises:
        InvalidSpec: TF32 was asked for, which a CPU does not have.
    """
    asked = spec.runtime.precision
    if asked == "tf32" and device == "cpu":
        raise InvalidSpec(
            "TF32 is a mode of GPUs, and the job runs on a CPU",
            field=FIELD,
            remedy="Use float32 or auto.",
            mends=[Mend(FIELD, "auto"), Mend(FIELD, "float32")],
        )
    if asked != "auto":
        return asked
    narrow = DTYPE_BYTES[matrices_dtype(facts)] <= _SIXTEEN_BITS
    narrow = narrow and facts.config.generic is None
    return "bfloat16" if device == "cuda" and narrow else "float32"


def planned_precision(spec: JobSpec, facts: ModelFacts) -> Precision:
    """What a job's memory is planned for: the most that it takes where the device is not known."""
    if spec.runtime.device != "auto":
        return precision_of(spec, facts, _kind_of(spec))
    return "float32" if spec.runtime.precision == "auto" else spec.runtime.precision


def precisions(spec: JobSpec, facts: ModelFacts) -> dict[Device, Precision]:
    """What a job computes in, on each kind of device that it may run on."""
    unknown = spec.runtime.device == "auto"
    devices: tuple[Device, ...] = ("cpu", "cuda") if unknown else (_kind_of(spec),)
    if spec.runtime.precision == "tf32":
        devices = ("cuda",)
    return {device: precision_of(spec, facts, device) for device in devices}


def _kind_of(spec: JobSpec) -> Device:
    return "cuda" if spec.runtime.on_gpu else "cpu"


def planned_operand_bytes(spec: JobSpec) -> int:
    """Bytes of an operand in a job's plan, from its specification as inspection returns it."""
    asked = spec.runtime.precision
    return operand_bytes("float32" if asked == "auto" else asked)


def with_planned_precision(spec: JobSpec, facts: ModelFacts) -> JobSpec:
    """The job with the precision that it will have, where its device is known to have another.

    So the plan follows from the specification alone.
    """
    planned = planned_precision(spec, facts)
    if spec.runtime.precision != "auto" or planned == "float32":
        return spec
    runtime = spec.runtime.model_copy(update={"precision": planned})
    return spec.model_copy(update={"runtime": runtime})


def matrices_dtype(facts: ModelFacts) -> str:
    """The safetensors dtype that most numbers of the layers' matrices are stored in."""
    config, numbers = facts.config, Counter[str]()
    for layer in range(config.layers):
        for role, shape in layer_tensors(config, layer).items():
            if is_operand(config, layer, role, shape):
                info = facts.index.tensors[tensor_name(config, layer, role)]
                numbers[info.dtype] += math.prod(shape)
    return numbers.most_common(1)[0][0] if numbers else "F32"


def rounding_warning(used: Collection[Precision], facts: ModelFacts) -> list[str]:
    """Weights that are rounded to bfloat16 on the device.

    Args:
        used: What the job computes in.
        facts: Its model.
    """
    stored = matrices_dtype(facts)
    if "bfloat16" not in used or stored == "BF16":
        return []
    return [
        f"{FIELD}: the model is stored in {stored}. Its matrices are rounded to bfloat16 to "
        "compute with; what the result stores is not. Use float32 or tf32 to avoid that."
    ]
