"""A model of any shape with random weights, in bfloat16, made tensor by tensor, to measure with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from strucprune_core.checkpoint.file_names import SHARD_INDEX
from strucprune_core.checkpoint.writer import (
    PlannedTensor,
    Shard,
    header_bytes,
    index_json,
    plan_shards,
    write_shard,
)
from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import expected_tensors

SCALE = 0.02
ROWS = 4096  # Made at a time.
WORDS = 60_000


def save_random_model(
    directory: Path,
    raw: dict[str, Any],
    max_shard_bytes: int = 1 << 30,
    written: Callable[[Path], None] = lambda path: None,
    *,
    words: int = WORDS,
    scale: float = SCALE,
    device: str = "cpu",
) -> Path:
    """Write config, weights and a tokenizer; the path of a text that it can read.

    Args:
        directory: Where to; made.
        raw: The config.json.
        max_shard_bytes: Size of a file, at most.
        written: Told each file of weights once it is whole, and may move it away.
        words: Of the text; each is a token.
        scale: Standard deviation of the matrices.
        device: Where numbers are drawn: a GPU takes seconds for billions of them. Another kind of
            device draws other numbers.
    """
    shapes, shards = _planned(raw, max_shard_bytes)
    _save_small_files(directory, raw, shards)
    generator = torch.Generator(device).manual_seed(0)

    def produce(name: str) -> Iterator[Tensor]:
        shape = shapes[name]
        if len(shape) == 1:
            yield (torch.zeros if name.endswith("bias") else torch.ones)(shape).bfloat16()
            return
        for start in range(0, shape[0], ROWS):
            rows = min(ROWS, shape[0] - start)
            drawn = torch.randn(rows, *shape[1:], generator=generator, device=device)
            yield (drawn * scale).bfloat16()

    for shard in shards:
        write_shard(directory / shard.file_name, shard, produce)
        written(directory / shard.file_name)
    text = directory.parent / "text.txt"
    draw = torch.randint(raw["vocab_size"], (words,), generator=generator, device=device)
    text.write_text(" ".join(map(str, draw.tolist())), encoding="utf-8")
    return text


def save_empty_model(directory: Path, raw: dict[str, Any], max_shard_bytes: int = 1 << 30) -> None:
    """Write the same files with holes for weights: enough to plan with, and no space taken."""
    _, shards = _planned(raw, max_shard_bytes)
    _save_small_files(directory, raw, shards)
    for shard in shards:
        with (directory / shard.file_name).open("wb") as file:
            file.write(header_bytes(shard))
            file.truncate(file.tell() + sum(tensor.size_bytes for tensor in shard.tensors))


def _planned(
    raw: dict[str, Any], max_shard_bytes: int
) -> tuple[dict[str, tuple[int, ...]], list[Shard]]:
    """Shapes of all tensors, and the files that they go to."""
    shapes = expected_tensors(parse_config(raw))
    planned = [PlannedTensor(name, "BF16", shape) for name, shape in shapes.items()]
    return shapes, plan_shards(planned, max_shard_bytes)


def _save_small_files(directory: Path, raw: dict[str, Any], shards: list[Shard]) -> None:
    directory.mkdir(parents=True)
    if len(shards) > 1:
        (directory / SHARD_INDEX).write_bytes(index_json(shards))
    (directory / "config.json").write_text(json.dumps({**raw, "torch_dtype": "bfloat16"}))
    vocabulary = {str(number): number for number in range(raw["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
