"""`allocate`: which round's widths are used."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import AllocateValues, Price, PriceValues
from strucprune_core.run.context import Job
from strucprune_core.run.energies import round_divergence
from strucprune_core.run.workspace import Draft


def allocate(job: Job, unit: Unit, draft: Draft) -> None:
    """Choose the round whose model diverges least from the dense one; writes no file."""
    rounds = range(1, job.spec.pruning.rounds + 1)
    kls = [round_divergence(job, number) for number in rounds] if len(rounds) > 1 else []
    chosen = 1 + int(np.argmin(kls)) if kls else 1
    price = job.units.values(Price(chosen))
    given = {field.name: getattr(price, field.name) for field in fields(PriceValues)}
    draft.record(AllocateValues(**given, round=chosen, kls=kls))
