"""The check of a generic model before a job: what it reads."""

from __future__ import annotations

import pytest

from strucprune_core.evaluation.generic_check import check_generic_model
from tests.core.models.generic.streams import tiny_stream


@pytest.mark.parametrize("name", ["olmo2", "exaone_moe"])
def test_a_checked_layer_is_read_for_the_whole_pass_and_once_more(name: str) -> None:
    stream, source, _ = tiny_stream(name, num_hidden_layers=8)
    source.reads.clear()
    found = check_generic_model(stream, 0, lambda: None, sequences=1, length=8)
    for layer in range(8):
        prefix = stream.config.names.layer.format(layer)
        reads = {count for tensor, count in source.reads.items() if tensor.startswith(prefix)}
        assert reads == ({2} if layer in found["layers"] else set())
