"""Work of whole jobs: what their units take and how large their files are, from a model's shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from benchmarks.wavefront.simulate import Work
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.tiles import HOLDOUT_TOKENS
from strucprune_core.plan.chunks import chunks
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.sites import plan_sites, probe_shape
from strucprune_core.plan.sizes import joined
from strucprune_core.plan.traffic import StoredWeights
from strucprune_core.plan.unit_seconds import StoredModel, unit_seconds
from strucprune_core.plan.work import computing_units
from strucprune_core.run.artifacts import Capture, File, Solve
from strucprune_core.spec import JobSpec

FLOAT32_BYTES, STORED_BYTES = 4, 2


def graph_of(spec: JobSpec, config: ModelConfig) -> list[Unit]:
    """All units of a job of one or several sizes, as if each result were one file."""
    sizes = spec.by_size()
    return joined({size: computing_units(alone, config) for size, alone in sizes.items()})


def work_of(spec: JobSpec, config: ModelConfig, seconds: Mapping[str, float]) -> Work:
    """A job whose units take these seconds, by name."""
    plan = plan_job(spec, config)
    handed_on = len(chunks(spec.calibration, plan.tiles))
    return Work(graph_of(spec, config), seconds, _file_bytes(spec, config), handed_on)


def predicted_work(spec: JobSpec, config: ModelConfig, rates: DeviceRates) -> Work:
    """A job of one size whose units take what is predicted for a device."""
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    units, plan = graph_of(spec, config), plan_job(spec, config)
    stored = StoredModel(
        STORED_BYTES * parameters,
        is_local=False,
        weights=StoredWeights(float(STORED_BYTES), STORED_BYTES),
    )
    return work_of(spec, config, unit_seconds(units, spec, config, plan, rates, stored, "bfloat16"))


def _file_bytes(spec: JobSpec, config: ModelConfig) -> Callable[[File], float]:
    """How large a file is."""
    columns = {layer: [0] for layer in range(config.layers)}
    for place in plan_sites(config, spec.pruning):
        columns[place.layer].append(place.site.structures * place.site.columns)
    widest = max(sum(each) for each in columns.values())
    d, text = config.hidden_size, spec.calibration
    held_out, (sequences, tokens) = (
        min(HOLDOUT_TOKENS, text.samples * text.sequence_length),
        (probe_shape(text)),
    )
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    grams = max(sum(each * each for each in layer) for layer in columns.values())
    sizes = {
        Capture.hidden: FLOAT32_BYTES * text.samples * text.sequence_length * d,
        Capture.grams: FLOAT32_BYTES * grams,
        Capture.holdout: FLOAT32_BYTES * held_out * widest,
        Capture.probe_input: FLOAT32_BYTES * sequences * tokens * d,
        Solve.solution: FLOAT32_BYTES * widest * d,
        "shard.safetensors": STORED_BYTES * parameters,
    }

    def size_bytes(file: File) -> float:
        name = Capture.hidden if file.name.startswith("hidden.") else file.name
        return float(sizes.get(name, 0))

    return size_bytes
