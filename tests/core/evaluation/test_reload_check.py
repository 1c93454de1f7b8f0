"""The reload check passes what was meant to be written, and nothing else."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strucprune_core.checkpoint.header import parse_header
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.errors import InvalidCheckpoint, NumericalFailure, StrucPruneError
from strucprune_core.evaluation.reload_check import (
    check_same_tensors,
    compare_with_transformers,
)
from strucprune_core.export.layouts import side_files
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.run import result_files
from strucprune_core.run.artifacts import Assemble
from strucprune_core.run.step_table import STEPS
from strucprune_core.run.steps.assemble import assemble
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import files_of, run, tiny_spec
from tests.core.models.reference import open_stream, random_llama, random_tokens, stream_of

TOKENS = random_tokens(2, 64)
UP = "model.layers.1.mlp.up_proj.weight"


def compare(directory: Path, **changes: Any) -> dict[str, Any]:
    """Compare `expected` below a directory with what lies in its `written`."""
    index = open_checkpoint(LocalStore(directory / "written"))
    files = {"config_json": index.config_bytes, "tensor_names": set(index.tensors), **changes}
    return compare_with_transformers(
        open_stream(directory / "expected"),
        open_stream(directory / "written"),
        tokens=TOKENS,
        scratch=directory,
        **files,
    )


@pytest.fixture(params=["untied", "tied", "pruned"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with one checkpoint twice."""
    widths = [48, 7, 20] if request.param == "pruned" else None
    model = random_llama(widths, tie_word_embeddings=request.param == "tied")
    for name in ("expected", "written"):
        stream_of(model, tmp_path / name)
    return tmp_path


def flip(path: Path, name: str = UP) -> None:
    """Flip one bit of a safetensors file: the sign of a tensor's largest element."""
    largest = int(load_file(path)[name].flatten().abs().argmax())
    data = bytearray(path.read_bytes())
    header = parse_header(lambda start, size: data[start : start + size], path.name, len(data))
    data[header.tensors[name].start + 4 * largest + 3] ^= 0x80
    path.write_bytes(data)


def drop(path: Path, name: str = UP) -> None:
    """Write a safetensors file again without one of its tensors."""
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def test_the_right_files_pass(checkpoints: Path) -> None:
    result = compare(checkpoints)
    assert result["reference"].startswith("transformers ")
    assert result["tokens"] == TOKENS.size
    assert result["max_abs_logit_difference"] < 1e-4 < result["tolerance"]


def test_one_flipped_weight_is_found_wherever_it_is(checkpoints: Path) -> None:
    path = checkpoints / "written" / "model.safetensors"
    for name in load_file(path):
        flip(path, name)
        with pytest.raises(NumericalFailure, match="differ by") as caught:
            compare(checkpoints)
        assert caught.value.remedy
        flip(path, name)
    compare(checkpoints)


def test_a_weight_that_is_no_number_is_found(checkpoints: Path) -> None:
    path = checkpoints / "written" / "model.safetensors"
    tensors = load_file(path)
    tensors[UP][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(NumericalFailure, match="nan"):
        compare(checkpoints)


@pytest.mark.parametrize("name", [UP, "model.norm.weight"])
def test_a_missing_tensor_is_named(checkpoints: Path, name: str) -> None:
    drop(checkpoints / "written" / "model.safetensors", name)
    with pytest.raises(InvalidCheckpoint, match=name):
        compare(checkpoints)


def test_a_tensor_too_many_is_named(checkpoints: Path) -> None:
    names = set(open_checkpoint(LocalStore(checkpoints / "written")).tensors)
    with pytest.raises(InvalidCheckpoint, match="lora"):
        compare(checkpoints, tensor_names={*names, "lora.weight"})


def test_a_config_of_other_widths_is_refused(checkpoints: Path) -> None:
    config = json.loads((checkpoints / "written" / "config.json").read_bytes())
    config["intermediate_size"] += 1
    if "strucprune" in config:
        config["strucprune"]["layers"][1]["ffn"][0] += 1
    with pytest.raises(InvalidCheckpoint, match="layer"):
        compare(checkpoints, config_json=json.dumps(config).encode())


def damage_shard(patch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    def step(job: Any, unit: Any, draft: Any) -> None:
        assemble(job, unit, draft)
        damage(draft.path(Assemble.written))

    patch.setitem(STEPS, "assemble", step)


def lie_about_widths(patch: pytest.MonkeyPatch) -> None:
    def lying(layout: str, dense_config: dict[str, Any], pruned: ModelConfig) -> dict[str, bytes]:
        first, *others = pruned.blocks
        wider = replace(first, ffn_widths=(first.ffn_widths[0] + 1,))
        return side_files(layout, dense_config, pruned.with_blocks([wider, *others]))

    patch.setattr(result_files, "side_files", lying)


DAMAGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], type[StrucPruneError], str]] = {
    "flipped weight": (lambda patch: damage_shard(patch, flip), NumericalFailure, "differ by"),
    "missing tensor": (lambda patch: damage_shard(patch, drop), InvalidCheckpoint, UP),
    "wrong widths": (lie_about_widths, InvalidCheckpoint, r"layers\.0\.mlp\..* has shape"),
}


@pytest.mark.parametrize(("damage", "kind", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_job_that_wrote_something_else_publishes_nothing(
    tmp_path: Path,
    tiny_model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[pytest.MonkeyPatch], None],
    kind: type[StrucPruneError],
    words: str,
) -> None:
    damage(monkeypatch)
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", evaluation=None)
    with pytest.raises(kind, match=words) as caught:
        run(spec, tmp_path)
    assert caught.value.phase == "evaluating"
    assert files_of(tmp_path / "out") == {}


def test_one_tensor_of_each_source_is_in_memory() -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    class Watched(StoredSource):
        """Makes tensors, and counts those that are alive."""

        def stored(self, name: str) -> Tensor:
            made = torch.zeros(4)
            alive.append(weakref.ref(made))
            counts.append(sum(each() is not None for each in alive))
            return made

        def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
            raise AssertionError("tensors are compared whole")

    check_same_tensors(Watched(), Watched(), ["a", "b", "c"], lambda done, total: None)
    assert counts == [1, 2] * 3
