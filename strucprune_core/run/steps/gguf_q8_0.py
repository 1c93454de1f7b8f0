"""`gguf_q8_0`: write the result as one GGUF file whose matrices have 8 bits for a weight."""

from __future__ import annotations

from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import GgufQ80
from strucprune_core.run.context import Job
from strucprune_core.run.steps.gguf import write_result
from strucprune_core.run.workspace import Draft


def gguf_q8_0(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the file."""
    write_result(job, draft.path(GgufQ80.written), quantised=True)
