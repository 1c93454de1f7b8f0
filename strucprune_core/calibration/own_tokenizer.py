"""Gives a model that has no tokenizer.json one made of its older files. No torch.

The conversion is in `tokenizer_conversion`; it takes some seconds, once for each process that works
on a job.
"""

from __future__ import annotations

from dataclasses import replace

from strucprune_core.calibration.text_process import converted_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.storage.added_file import WithAddedFile


def with_tokenizer(index: CheckpointIndex) -> CheckpointIndex:
    """The checkpoint with a tokenizer.json; itself if it has one.

    Raises:
        InvalidCheckpoint: none can be made.
        StorageError: the store refused or failed.
    """
    if TOKENIZER in index.other_files:
        return index
    data = converted_tokenizer(index.store, index.other_files, str(index.config.get("model_type")))
    store = WithAddedFile(index.store, TOKENIZER, data)
    return replace(index, store=store, other_files=(*index.other_files, TOKENIZER))
