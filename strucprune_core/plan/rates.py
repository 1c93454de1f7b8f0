"""How fast a device was measured to be: what times of jobs are predicted from. No torch.

`evaluation.device_rates` measures it in about a second; a worker does so when it starts. A table of
`bench-device` (`plan.device_table`) takes minutes, and says how fast single passes are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "float64", "bfloat16", "tf32"]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Sizes = Annotated[dict[Annotated[int, Field(ge=1)], Rate], Field(min_length=1, max_length=32)]

# Where nobody has measured yet how fast storage is read: assumptions, a disk and a network.
COPY_BYTES_PER_SECOND = 5e9  # The same of a bus whose copies were not measured.
LOCAL_BYTES_PER_SECOND, REMOTE_BYTES_PER_SECOND = 1e9, 1.5e8


class DeviceRates(BaseModel):
    """What one process was measured to do on its device."""

    # Another release may say more.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    device: str = Field(min_length=1, max_length=200, description="The processor's or GPU's name.")
    kind: Literal["cpu", "cuda"]
    threads: int = Field(ge=1, le=4096, description="Of torch.")
    products: dict[Precision, Sizes] = Field(
        description="Operations per second of a product of two square matrices, by precision and "
        "size; a multiplication and an addition count as two."
    )
    solves_in: Literal["float32", "float64"] = Field(
        default="float64", description="What curves and solves are computed in on this device."
    )
    memory_bytes_per_second: Rate = Field(
        description="How fast a matrix is read that multiplies one vector."
    )
    copy_bytes_per_second: Rate = Field(
        default=COPY_BYTES_PER_SECOND,
        description="Between host and GPU, from memory that is not pinned.",
    )
    read_bytes_per_second: Rate | None = Field(
        default=None, description="Of the model's files in storage, as jobs saw; null: unknown."
    )

    def product(self, precision: Precision, size: float) -> float:
        """Operations per second of products of this size.

        Between two sizes that were measured, rates go with the logarithm; beyond them they stay.
        """
        measured = self.products.get(precision) or self.products["float32"]
        return _interpolated(measured, size)


def _interpolated(measured: Mapping[int, float], size: float) -> float:
    sizes = sorted(measured)
    if size <= sizes[0]:
        return measured[sizes[0]]
    for low, high in pairwise(sizes):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return math.exp(
                (1.0 - share) * math.log(measured[low]) + share * math.log(measured[high])
            )
    return measured[sizes[-1]]
