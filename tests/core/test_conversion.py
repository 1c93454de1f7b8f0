"""`strucprune convert`: pickled checkpoints to safetensors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from embedded.s3 import S3Server
from strucprune_core.conversion import convert
from strucprune_core.errors import (
    InvalidCheckpoint,
    ObjectNotFound,
    OutputNotEmpty,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from tests.core.commands.calling import call, prune_command, result_of
from tests.core.jobs.tiny_job import FlakyStore, files_of
from tests.core.models.families import random_model
from tests.support.sentencepiece import sentencepiece_model
from tests.support.tiny_llama import make_tiny_llama

INDEX = "pytorch_model.bin.index.json"


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def save(state: object, path: Path, **options: Any) -> None:
    torch.save(state, path, **options)


def pickled_model(model: Path, directory: Path, *, shards: int = 1, **options: Any) -> Path:
    """The same model with `pytorch_model.bin` files, as transformers wrote them until 2023."""
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = weights_of(model)
    config = json.loads((model / "config.json").read_text())
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if shards == 1:
        save(state, directory / "pytorch_model.bin", **options)
        return directory
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(state.items())[number::shards])
        weight_map |= dict.fromkeys(part, name)
        save(part, directory / name, **options)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def converted(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    scratch = output.parent / f"scratch-{output.name}"
    scratch.mkdir()
    result = convert(LocalStore(source), LocalStore(output), scratch, **options)
    assert not list(scratch.iterdir())
    return result


def refused(
    source: Path, output: Path, reason: str, kind: type[StrucPruneError] = InvalidCheckpoint
) -> StrucPruneError:
    with pytest.raises(kind, match=reason) as caught:
        converted(source, output)
    assert not list(LocalStore(output).list())
    assert len(str(caught.value)) < 600
    return caught.value


def test_licences_and_the_card_go_along(tiny_model: Path, tmp_path: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    terms = {"LICENSE": b"free", "NOTICE.txt": b"of whom", "README.md": b"---\nlicense: mit\n---\n"}
    for name, data in {**terms, "train.log": b"steps"}.items():
        (source / name).write_bytes(data)
    converted(source, tmp_path / "out")
    found = files_of(tmp_path / "out")
    assert {name: found[name] for name in terms} == terms
    assert "train.log" not in found


def test_a_licence_that_is_too_large_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    (source / "LICENSE").write_bytes(b" " * (2**20 + 1))
    assert refused(source, tmp_path / "out", "LICENSE has").field == "SRC"


def test_a_tokenizer_is_made_of_older_files(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2)
    source = pickled_model(model, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(sentencepiece_model())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    result = converted(source, tmp_path / "out")
    assert result["tokenizer"] == "tokenizer.json, made of tokenizer.model"
    assert Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode("hello").ids
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "OwnTokenizer"}')
    kept = converted(source, tmp_path / "kept")
    assert "no class 'OwnTokenizer'" in kept["tokenizer"]
    assert not (tmp_path / "kept/tokenizer.json").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_same_model_as_safetensors(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=2, tie=False, dtype=dtype)
    source = pickled_model(model, tmp_path / "source", shards=shards)
    result = converted(source, tmp_path / "out", max_shard_bytes=200_000)
    found, expected = weights_of(tmp_path / "out"), weights_of(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result["tensors"] == len(expected)
    assert result["files"] > 1
    facts = inspect_model(LocalStore(tmp_path / "out"))
    assert facts.index.digest() == result["digest"]
    small = {name: data for name, data in files_of(model).items() if "safetensors" not in name}
    kept = {name: data for name, data in files_of(tmp_path / "out").items() if name in small}
    assert kept == small


def test_transformers_reads_it(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = pickled_model(tiny_model, tmp_path / "source")
    assert converted(source, tmp_path / "out")["tied"] == ["lm_head.weight"]
    tokens = torch.arange(20)[None]
    logits = []
    for path in (tiny_model, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.inference_mode():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)


def test_it_is_laid_out_as_transformers_would(tmp_path: Path, tiny_model: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    converted(source, tmp_path / "out")
    assert weights_of(tmp_path / "out").keys() == weights_of(tiny_model).keys()
    assert "lm_head.weight" not in weights_of(tmp_path / "out")


def test_names_that_share_memory_are_both_kept_unless_the_model_ties_them(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", layers=1, tie=True)
    source = pickled_model(model, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert converted(source, tmp_path / "out")["tied"] == []
    found = weights_of(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize(("variant", "prefix"), [("opt", "model."), ("gpt2", "transformer.")])
def test_models_as_they_lie_on_the_hub(tmp_path: Path, variant: str, prefix: str) -> None:
    """Names without the base model's prefix, and a config that leaves tying to the family."""
    model, source = random_model(variant), tmp_path / "source"
    source.mkdir()
    config = model.config.to_dict()
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    state = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in state
    save(state, source / "pytorch_model.bin")
    assert converted(source, tmp_path / "out")["tied"] == ["lm_head.weight"]
    assert "lm_head.weight" not in weights_of(tmp_path / "out")
    facts = inspect_model(LocalStore(tmp_path / "out"))
    assert sum(p.numel() for p in model.parameters()) == sum(
        info.parameters for info in facts.index.tensors.values()
    )


def test_the_format_before_torch_1_6(tmp_path: Path, tiny_model: Path) -> None:
    source = pickled_model(
        tiny_model, tmp_path / "source", shards=3, _use_new_zipfile_serialization=False
    )
    converted(source, tmp_path / "out")
    found, expected = weights_of(tmp_path / "out"), weights_of(tiny_model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_views_transposes_and_parameters(tmp_path: Path, tiny_model: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    state = torch.load(source / "pytorch_model.bin")
    norm = torch.arange(200.0)
    state["a"], state["b"] = norm[:64], norm[64:128]
    state["c"] = torch.nn.Parameter(torch.rand(3, 5)).T
    state["d"] = torch.tensor(3)
    state["e"], state["f"] = torch.empty(0, 4), torch.empty(0, 4)
    save(state, source / "pytorch_model.bin")
    converted(source, tmp_path / "out")
    found = weights_of(tmp_path / "out")
    assert all(torch.equal(found[name], state[name]) for name in "abcdef")


class Evil:
    """Runs a command where it is unpickled without restriction."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("style", ["zip", "legacy", "bare"])
def test_code_in_the_pickle_is_not_run(tmp_path: Path, tiny_model: Path, style: str) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    evil = {"model.norm.weight": Evil(f"touch {tmp_path}/pwned")}
    if style == "bare":
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(evil))
    else:
        zipped = style == "zip"
        save(evil, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    reason = "cannot be read" if style == "bare" else "wants to run 'posix.system'"
    error = refused(source, tmp_path / "out", reason)
    assert "weights_only" not in str(error)
    assert error.field == "SRC"
    assert error.remedy
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"model": {"a": torch.ones(2)}}, "under 'model' it holds 'dict', not a tensor"),
        ([torch.ones(2)], "it holds 'list'"),
        (torch.ones(2), "it holds 'Tensor'"),
        ({3: torch.ones(2)}, "under 3"),
        ({"a": 3}, "'int', not a tensor"),
        ({"": torch.ones(2)}, "name"),
        ({"a\n": torch.ones(2)}, "unprintable name"),
        ({"x" * 600: torch.ones(2)}, "overlong"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, device="meta")}, "no data"),
        ({"a": torch.ones(1).expand(10**12)}, "more elements than"),
        ({"a": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({}, "no tensors"),
    ],
)
def test_what_is_no_plain_state_dict(
    tmp_path: Path, tiny_model: Path, state: object, reason: str
) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    save(state, source / "pytorch_model.bin")
    error = refused(source, tmp_path / "out", reason)
    assert error.field == "SRC"


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zip", "middle"])
def test_damaged_files(tmp_path: Path, tiny_model: Path, damage: str) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    path = source / "pytorch_model.bin"
    whole = path.read_bytes()
    at = whole.index(b"data.pkl") + 200
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "zip": b"PK\x03\x04" + bytes(100),
            "middle": whole[:at] + bytes(60) + whole[at + 60 :],
        }[damage]
    )
    refused(source, tmp_path / "out", r"pytorch_model\.bin")


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "not valid JSON"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": "../x.bin"}}', "unsafe"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "unsafe"),
        ('{"weight_map": {"a": 3}}', "unsafe"),
        ('{"weight_map": {"a": "gone.bin"}}', r"gone\.bin is missing"),
        ('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}', "'a' is not in the file"),
    ],
)
def test_bad_indices(tmp_path: Path, tiny_model: Path, index: str, reason: str) -> None:
    source = pickled_model(tiny_model, tmp_path / "source", shards=2)
    (source / INDEX).write_text(index)
    refused(source, tmp_path / "out", reason)


def test_what_else_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    refused(tmp_path / "nothing", tmp_path / "a", "no directory", ObjectNotFound)
    refused(tiny_model, tmp_path / "b", r"model\.safetensors already")
    source = pickled_model(tiny_model, tmp_path / "source")
    (source / "pytorch_model.bin").rename(source / "model.pt")
    refused(source, tmp_path / "c", "neither")
    (source / "config.json").unlink()
    refused(source, tmp_path / "d", r"no config\.json")


def test_the_output_must_be_empty(tmp_path: Path, tiny_model: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputNotEmpty) as caught:
        converted(source, tmp_path / "out")
    assert caught.value.field == "DST"
    assert files_of(tmp_path / "out") == {"mine.txt": b"mine"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, tiny_model: Path, fails_at: int, after: bool
) -> None:
    source = LocalStore(pickled_model(tiny_model, tmp_path / "source"))
    output = FlakyStore(tmp_path / "out", fails_at, after=after)
    try:
        convert(source, output, tmp_path, max_shard_bytes=300_000)
    except StorageUnavailable:
        assert not list(output.list())
    else:
        assert inspect_model(output)


def test_the_config_comes_last(tmp_path: Path, tiny_model: Path) -> None:
    source = LocalStore(pickled_model(tiny_model, tmp_path / "source"))
    order: list[str] = []

    class Watched(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            order.append(key)
            super().put(key, data)

        def upload(
            self, key: str, path: Path, tick: Callable[[int], None] = lambda done: None
        ) -> None:
            order.append(key)
            super().upload(key, path, tick)

    convert(source, Watched(tmp_path / "out"), tmp_path)
    assert order[0] == "model.safetensors"
    assert order[-1] == "config.json"


def test_files_are_mapped_not_read(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    load = torch.load

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(options["mmap"] and options["weights_only"])
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    converted(pickled_model(tiny_model, tmp_path / "source", shards=4), tmp_path / "out")
    assert len(asked) >= 4
    assert all(asked)


@pytest.mark.services
def test_from_s3_to_s3(tmp_path: Path, tiny_model: Path, s3_server: S3Server) -> None:
    settings = S3Settings(
        s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    bucket = f"convert-{uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    source, output = (open_store(f"s3://{bucket}/{name}", settings) for name in ("src", "dst"))
    for path in pickled_model(tiny_model, tmp_path / "source", shards=3).iterdir():
        source.upload(path.name, path)
    convert(source, output, tmp_path, max_shard_bytes=300_000)
    local = converted(tmp_path / "source", tmp_path / "out", max_shard_bytes=300_000)
    assert inspect_model(output).index.digest() == local["digest"]


def test_from_the_command_line(tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    source = pickled_model(tiny_model, tmp_path / "source")
    for command in (["inspect", source], prune_command(source, text_file, tmp_path / "pruned")):
        failed = call(*command, "--json")
        error = json.loads(failed.stdout)["error"]
        assert error["code"] == "invalid_checkpoint"
        assert "strucprune convert" in error["remedy"]
    result = result_of("convert", source, tmp_path / "out")
    assert result["tied"] == ["lm_head.weight"]
    assert result_of("inspect", tmp_path / "out")["digest"] == result["digest"]
    assert call("convert", source, tmp_path / "out").exit_code == 1
    assert call("convert", source, tmp_path / "again").exit_code == 0
