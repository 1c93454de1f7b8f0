"""How long each unit takes on a device whose rates were measured. No torch.

    seconds = operations x slowdown / rate of products        (by purpose, in its precision)
            + weights that are loaded / rate of memory
            + bytes of them that storage has to send / rate of storage
            + bytes that cross between host and GPU / rate of copies
            + what every unit of its kind takes beside that

The estimate before a job (`plan.seconds`), its progress while it runs (`run.progress_meter`) and
the prediction in its report all come from here. Slowdowns and fixed times were seen in jobs on one
core of a processor: docs/estimates.md has the table, `benchmarks.predicted_time` the command.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from strucprune_core.method.linalg.panels import WIDE_COLUMNS
from strucprune_core.method.linalg.transfers import Transferred
from strucprune_core.models import precision as models
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.pieces import Plan
from strucprune_core.plan.rates import (
    LOCAL_BYTES_PER_SECOND,
    REMOTE_BYTES_PER_SECOND,
    DeviceRates,
    Precision,
)
from strucprune_core.plan.sites import plan_sites
from strucprune_core.plan.speed import ROUNDS, shape
from strucprune_core.plan.traffic import StoredWeights, unit_traffic
from strucprune_core.plan.work import unit_flops
from strucprune_core.spec import JobSpec
from strucprune_core.storage.read_ahead import CACHE_BYTES
from strucprune_core.storage.uri import parse_uri

# How much slower operations of a purpose run than a product of matrices as large. A pass has
# attention, norms and activations beside its products, which operations do not count.
SLOWDOWN: dict[str, float] = {
    "calibration": 1.5,
    "grams": 1.85,
    "curves": 1.75,
    "solves": 1.5,
    "probes": 1.45,
    "trials": 1.5,
    "reviews": 1.45,
    "evaluation": 1.3,
    "gradients": 1.5,
    "recovery": 0.7,  # Its planned operations are those of whole layers, of which it trains a part.
    "distillation": 1.1,
    "blocks": 1.45,
    "refits": 1.5,
    "repairs": 1.5,
    "verification": 1.5,
    "writing": 1.5,
    "samples": 1.5,
    "speed": 1.5,
}
# Purposes whose matrices are as wide as what is pruned; those of all others as the hidden states.
_OF_WIDTH = frozenset({"grams", "curves", "solves"})
_SOLVED = frozenset({"curves", "solves"})
# Seconds that units of a kind take whatever the model: processes, imports, files.
FIXED_SECONDS: dict[str, float] = {
    "tokens": 0.5,
    "model_check": 2.8,
    "verify": 0.2,
    "speed": 12.0,
    "samples": 0.5,
    "tasks": 2.0,
    "price": 0.15,
    "report": 0.15,
}
EVERY_UNIT_SECONDS = 0.02
# Bytes that a parameter moves in memory. Loaded: it is read, widened to float32, and read again.
# Written: it is put together, narrowed, hashed and written. Published: it is hashed and copied.
LOADED_BYTES_PER_PARAMETER = 30.0
READ_BYTES_PER_PARAMETER = 6.0  # By a token that a whole model in memory writes.
WRITTEN_BYTES_PER_PARAMETER = 350.0
PUBLISHED_BYTES_PER_PARAMETER = 150.0
# A model on a local disk that is no larger stays in the page cache.
PAGE_CACHE_BYTES = 8 * 2**30
# Kinds of units that write a file of the result.
_WRITING = frozenset({"assemble", "gguf", "gguf_q8_0", "fp8", "block_configs"})


@dataclass(frozen=True)
class StoredModel:
    """Where a model's weights are read.

    Attributes:
        size_bytes: Of its files.
        is_local: Whether they lie on this machine.
        weights: How they are stored.
    """

    size_bytes: int
    is_local: bool
    weights: StoredWeights

    @classmethod
    def of(cls, facts: ModelFacts) -> StoredModel:
        """That of an inspected model."""
        index = facts.index
        is_local = parse_uri(index.store.uri).scheme == "file"
        return cls(index.total_bytes, is_local, StoredWeights.of(facts))

    def bytes_per_second(self, rates: DeviceRates) -> float:
        """How fast they are read."""
        if self.is_local:
            return LOCAL_BYTES_PER_SECOND
        return rates.read_bytes_per_second or REMOTE_BYTES_PER_SECOND


def rate_of(
    purpose: str, precision: models.Precision, rates: DeviceRates, columns: int
) -> Precision:
    """In what a device computes operations of a purpose, in a job of this precision.

    Statistics stay float32, whose products are those of TF32 in every other precision. What is
    solved in float32 first is so in most cases.

    Args:
        purpose: Of the operations, as `plan.work` names it.
        precision: Of the job.
        rates: Of the device.
        columns: Of the widest matrix that is solved.
    """
    if purpose == "curves" and rates.kind == "cpu" and columns > WIDE_COLUMNS:
        return "float32"
    if purpose in _SOLVED:
        return rates.solves_in
    if purpose == "grams" and precision != "float32":
        return "tf32"
    return precision


def unit_seconds(
    units: Iterable[Unit],
    spec: JobSpec,
    config: ModelConfig,
    plan: Plan,
    rates: DeviceRates,
    stored: StoredModel,
    precision: models.Precision = "float32",
) -> dict[str, float]:
    """Seconds of units by name, as one process does them one after another.

    Args:
        units: Units of a job of one size.
        spec: The job.
        config: The dense model.
        plan: The pieces in which it runs.
        rates: Of the device.
        stored: Where the model lies.
        precision: Of the job on this device.
    """
    units = list(units)
    files = Counter(unit.kind for unit in units)
    times = _Times(spec, config, rates, stored, precision, files)
    work = unit_flops(units, spec, config, plan.panels)
    moved = unit_traffic(units, spec, config, plan.tiles, plan.panels, stored.weights)
    return {unit.name: times.of(unit, work[unit.name], moved[unit.name]) for unit in units}


class _Times:
    """Seconds of a job's units."""

    def __init__(
        self,
        spec: JobSpec,
        config: ModelConfig,
        rates: DeviceRates,
        stored: StoredModel,
        precision: models.Precision,
        files: Mapping[str, int],
    ) -> None:
        self._spec, self._config, self._rates, self._files = spec, config, rates, files
        self._precision = precision
        self._whole = sum(math.prod(shape) for shape in expected_tensors(config).values())
        self._width = max(
            (place.site.width for place in plan_sites(config, spec.pruning)),
            default=config.hidden_size,
        )
        self._stored = stored
        self._read_rate = stored.bytes_per_second(rates)
        # Read once, and near from then on.
        self._is_kept = stored.size_bytes <= (PAGE_CACHE_BYTES if stored.is_local else CACHE_BYTES)

    def of(self, unit: Unit, work: Mapping[str, int], moved: Transferred) -> float:
        """Seconds of a unit with these operations by purpose, which moves these bytes."""
        computing = sum(count * self._per_operation(purpose) for purpose, count in work.items())
        passed = self._loaded(unit, moved) * LOADED_BYTES_PER_PARAMETER
        if unit.kind in _WRITING:  # What of the model does not go, in files of about one size.
            left = self._whole * (1.0 - (self._spec.pruning.sparsity or 0.0))
            passed += left * WRITTEN_BYTES_PER_PARAMETER / self._files[unit.kind]
        moving = passed / self._rates.memory_bytes_per_second + self._copying(moved)
        sent = moved.read if unit.kind == "weights" or not self._is_kept else 0
        fixed = FIXED_SECONDS.get(unit.kind, 0.0) + EVERY_UNIT_SECONDS
        return fixed + computing + moving + sent / self._read_rate

    def _copying(self, moved: Transferred) -> float:
        """Seconds of copies between host and GPU; on a CPU there are none."""
        if self._rates.kind != "cuda":
            return 0.0
        return (moved.to_device + moved.to_host) / self._rates.copy_bytes_per_second

    def _per_operation(self, purpose: str) -> float:
        size = self._width if purpose in _OF_WIDTH else self._config.hidden_size
        return SLOWDOWN.get(purpose, 1.0) / self._rates.product(
            rate_of(purpose, self._precision, self._rates, self._width), size
        )

    def _loaded(self, unit: Unit, moved: Transferred) -> float:
        """Parameters that a unit loads, some of them several times."""
        weights = self._stored.weights
        loaded = max(moved.read / weights.file_bytes, moved.to_device / weights.weight_bytes)
        if unit.kind != "speed":
            return loaded
        # Written for transformers as well as loaded by it, and read by each token that it writes.
        _, new = shape(self._spec, self._config)
        tokens = 2 * (ROUNDS + 1) * new
        each = READ_BYTES_PER_PARAMETER / LOADED_BYTES_PER_PARAMETER
        return (3 + tokens * each) * self._whole
