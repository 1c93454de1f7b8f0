"""Plans of jobs for common GPUs: memory by step, work, and times that follow from stated rates.

Nothing is measured here. Times are planned operations at the rates of a data sheet, which no
program reaches, so they say what a job takes at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.shapes import SMOLLM2, raw_of
from benchmarks.speed import IN_FLOAT64, PURPOSES
from strucprune_core.errors import InvalidSpec
from strucprune_core.method.linalg.transfers import Transferred
from strucprune_core.models.families import parse_config
from strucprune_core.plan.memory.host import PROCESS_BYTES, host_terms
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.traffic import StoredWeights, phase_traffic
from strucprune_core.plan.work import flops
from strucprune_core.spec import JobSpec

GIB = 2**30
BUDGET_SHARE = 0.9  # The rest is left to CUDA itself and to its libraries.
STORED_BYTES = 2  # Of a weight, in bfloat16.
READ_BYTES_PER_SECOND = 2e9
SAMPLES, SEQUENCE_LENGTH, SPARSITY = 128, 2048, 0.3
FLOAT64_PURPOSES = frozenset(purpose for phase in IN_FLOAT64 for purpose in PURPOSES[phase])
SHAPES = (SMOLLM2, "llama-7b", "llama-3-70b")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, with the peak rates that its data sheet names; operations per second."""

    name: str
    memory_gib: float
    float32: float
    float64: float

    @property
    def budget_bytes(self) -> int:
        """What a job may hold."""
        return int(BUDGET_SHARE * self.memory_gib * GIB)


# NVIDIA's data sheets: L4 (float64 by the Ada architecture's 1/64 of float32), A100 80 GB SXM and
# H200 SXM (float64 with tensor cores).
GPUS = (
    Gpu("L4", 24, 30.3e12, 30.3e12 / 64),
    Gpu("A100", 80, 19.5e12, 19.5e12),
    Gpu("H200", 141, 67e12, 67e12),
)


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What a job takes on a GPU.

    Attributes:
        device_bytes: Peak on the device, by step.
        host_bytes: Peak of the process.
        pieces: In which it runs.
        moved: Bytes that are read of the model, and that cross each way.
        flops: Operations by purpose.
        compute_seconds: Of these, at least.
        read_seconds: At `READ_BYTES_PER_SECOND`.
    """

    device_bytes: dict[str, int]
    host_bytes: int
    pieces: str
    moved: Transferred
    flops: dict[str, int]
    compute_seconds: float
    read_seconds: float


def plan_for(gpu: Gpu, raw: dict[str, Any]) -> GpuPlan:
    """Plan a job on a GPU.

    Raises:
        InvalidSpec: it does not fit.
    """
    config = parse_config(raw)
    spec = JobSpec.model_validate(
        {
            "model": {"uri": "/model"},
            "output": {"uri_prefix": "/out"},
            "pruning": {"sparsity": SPARSITY},
            "calibration": {
                "uri": "/text.txt",
                "samples": SAMPLES,
                "sequence_length": SEQUENCE_LENGTH,
            },
            # In float32, as the rates are.
            "runtime": {
                "device": "cuda",
                "device_memory_bytes": gpu.budget_bytes,
                "precision": "float32",
            },
        }
    )
    plan = plan_job(spec, config)
    work = flops(spec, config, plan.panels)
    stored = StoredWeights(STORED_BYTES, STORED_BYTES)
    phases = phase_traffic(spec, config, plan.tiles, plan.panels, stored)
    moved = Transferred.total(phases.values())
    rows = plan.tiles.weight_rows
    widest = max(max(block.ffn_widths) for block in config.blocks)
    return GpuPlan(
        device_bytes=plan.device_terms,
        host_bytes=PROCESS_BYTES + max(host_terms(spec, config).values()),
        pieces=f"{plan.tiles.micro_batch_tokens} tokens, "
        f"{'whole layers' if rows is None else f'{rows} rows of weights'}, "
        f"{min(plan.panels.panel, widest)} columns solved",
        moved=moved,
        flops=work,
        compute_seconds=sum(
            count / (gpu.float64 if purpose in FLOAT64_PURPOSES else gpu.float32)
            for purpose, count in work.items()
        ),
        read_seconds=moved.read / READ_BYTES_PER_SECOND,
    )


def plans_text(shapes: Sequence[str] = SHAPES, gpus: Sequence[Gpu] = GPUS) -> str:
    """Everything as Markdown."""
    return "\n".join(
        [*_assumptions(gpus), *(line for name in shapes for line in _shape(name, gpus))]
    )


def _assumptions(gpus: Sequence[Gpu]) -> list[str]:
    rates = "; ".join(
        f"{gpu.name} {gpu.float32 / 1e12:.3g} and {gpu.float64 / 1e12:.3g}" for gpu in gpus
    )
    return [
        f"Plans, nothing measured: {SPARSITY:.0%} of the FFN channels go, {SAMPLES} x "
        f"{SEQUENCE_LENGTH:,} calibration tokens, no evaluation.",
        f"Limit: {BUDGET_SHARE:.0%} of the GPU's memory.",
        "Computing, at least: planned operations at the data sheet's rates, in TFLOP/s of float32 "
        f"and float64: {rates}.",
        f"Reading: bfloat16 weights at {READ_BYTES_PER_SECOND / 1e9:g} GB/s, an assumption. "
        "Copies between host and GPU are planned, but no time is "
        "added for them.",
    ]


def _shape(name: str, gpus: Sequence[Gpu]) -> list[str]:
    raw, lines = raw_of(name), ["", f"## {name}", ""]
    lines += [
        "| GPU | peak on it | of step | host peak | pieces | TFLOP float32 | TFLOP float64 "
        "| computing, at least | read | reading | to the GPU | from it |",
        "|---" * 12 + "|",
    ]
    plans: dict[str, GpuPlan] = {}
    for gpu in gpus:
        title = f"{gpu.name}, {gpu.memory_gib:g} GiB"
        try:
            plans[title] = plan_for(gpu, raw)
        except InvalidSpec as refused:
            lines.append(f"| {title} | does not fit: {refused.message} |" + " |" * 10)
            continue
        lines.append(_row(title, plans[title]))
    if plans:
        lines += ["", *_steps(plans), "", *_work(next(iter(plans.values())))]
    return lines


def _row(title: str, plan: GpuPlan) -> str:
    step = max(plan.device_bytes, key=plan.device_bytes.__getitem__)
    in_float64 = sum(count for name, count in plan.flops.items() if name in FLOAT64_PURPOSES)
    in_float32 = sum(plan.flops.values()) - in_float64
    return (
        f"| {title} | {_gb(plan.device_bytes[step])} | {step} | {_gb(plan.host_bytes)} "
        f"| {plan.pieces} | {in_float32 / 1e12:,.1f} | {in_float64 / 1e12:,.1f} "
        f"| {plan.compute_seconds:,.1f} s | {_gb(plan.moved.read)} | {plan.read_seconds:,.1f} s "
        f"| {_gb(plan.moved.to_device)} | {_gb(plan.moved.to_host)} |"
    )


def _steps(plans: dict[str, GpuPlan]) -> list[str]:
    """Memory on the device by step."""
    steps = next(iter(plans.values())).device_bytes
    lines = ["| memory of step | " + " | ".join(plans) + " |", "|---" * (len(plans) + 1) + "|"]
    lines += [
        f"| {step} | " + " | ".join(_gb(plan.device_bytes[step]) for plan in plans.values()) + " |"
        for step in steps
    ]
    return lines


def _work(plan: GpuPlan) -> list[str]:
    """Operations by purpose; they differ between GPUs only as far as panels do."""
    lines = ["| work | TFLOP | precision |", "|---|---|---|"]
    lines += [
        f"| {name} | {count / 1e12:,.2f} | {'float64' if name in FLOAT64_PURPOSES else 'float32'} |"
        for name, count in plan.flops.items()
    ]
    return lines


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
