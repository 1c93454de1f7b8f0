"""`gguf`: write the result as one GGUF file.

Exporting cuts, rounds and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

from pathlib import Path

from strucprune_core.export.gguf_vocabulary import read_vocabulary
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Gguf
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.workspace import Draft
from strucprune_core.storage.uri import short_name


def gguf(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the file, with weights rounded to 16 bits."""
    write_result(job, draft.path(Gguf.written), quantised=False)


def write_result(job: Job, path: Path, *, quantised: bool) -> None:
    """Write the result as a GGUF file, its matrices in 16 bits or quantised to Q8_0."""
    from strucprune_core.export.gguf_file import write_gguf

    model, index = PrunedModel(job), job.index
    vocab_size = model.config.vocab_size
    write_gguf(
        path,
        model.in_files,
        model.source_of_files(),
        model.stored_dtype,
        read_vocabulary(index.store, index.other_files, index.config, vocab_size),
        short_name(job.spec.model.uri),
        job.tick,
        quantised=quantised,
    )
