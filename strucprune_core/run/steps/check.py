"""`check.e`: read an export back and compare it with what it was written from."""

from __future__ import annotations

import numpy as np

from strucprune_core.evaluation.reload_check import check_same_tensors, compare_with_transformers
from strucprune_core.models.devices import matrix_products_in
from strucprune_core.models.tiles import VERIFY_SEQUENCES, VERIFY_TOKENS
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Check, ReloadValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.workspace import Draft
from strucprune_core.run.written_exports import reopened_export


def check(job: Job, unit: Unit, draft: Draft) -> None:
    """Compare every tensor to the bit, and logits with those of transformers; writes no file.

    Logits are those of the weights as they are read again: of an export in fewer bits, rounded.

    Raises:
        InvalidCheckpoint: the export is not what was to be written.
        NumericalFailure: it computes something else.
    """
    export = next(each for each in job.spec.pruning.exports if Check(each).unit == unit.name)
    written = reopened_export(job, export)
    check_same_tensors(written.wanted, written.source, sorted(written.names), job.tick)
    pruned = PrunedModel(job)
    if export == "block_configs":
        expected = pruned.stream()  # without the padding
    else:
        expected = job.stream(pruned.in_files, written.wanted)
    tokens = np.asarray(job.units.array(Tokens().calibration))
    with matrix_products_in("float32"):
        result = compare_with_transformers(
            expected.in_float32,
            written.stream(job).in_float32,
            written.config_json,
            set(written.names),
            tokens[:VERIFY_SEQUENCES, :VERIFY_TOKENS],
            job.scratch,
            lambda: job.tick(0, 1),
        )
    draft.record(ReloadValues(**result))
