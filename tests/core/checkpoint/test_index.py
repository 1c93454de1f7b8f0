from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from strucprune_core.checkpoint import header
from strucprune_core.checkpoint import index as index_module
from strucprune_core.checkpoint.file_names import SHARD_INDEX
from strucprune_core.checkpoint.hostile_json import parse_object
from strucprune_core.checkpoint.index import (
    MAX_CONFIG_BYTES,
    Allowance,
    CheckpointIndex,
    open_checkpoint,
)
from strucprune_core.errors import (
    InvalidCheckpoint,
    ObjectNotFound,
    StrucPruneError,
    UnsupportedArchitecture,
)
from strucprune_core.storage.local import LocalStore

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.float32)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def open_at(path: Path) -> CheckpointIndex:
    return open_checkpoint(LocalStore(path))


def refused(path: Path, words: str) -> StrucPruneError:
    with pytest.raises(InvalidCheckpoint, match=words) as caught:
        open_at(path)
    return caught.value


@pytest.fixture
def single(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for shard, name, array in zip(SHARDS, "ab", (A, B), strict=True):
        save_file({name: array}, tmp_path / shard)
    write_map(tmp_path, dict(zip("ab", SHARDS, strict=True)))
    return tmp_path


def write_map(path: Path, weight_map: object) -> None:
    (path / SHARD_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_single_file(single: Path) -> None:
    index = open_at(single)
    assert index.config == {"model_type": "llama"}
    assert {name: info.shape for name, info in index.tensors.items()} == {"a": (2, 3), "b": (4,)}
    assert index.total_bytes == (single / "model.safetensors").stat().st_size
    assert index.other_files == ("tokenizer.json",)


def test_shards(sharded: Path) -> None:
    index = open_at(sharded)
    assert {name: info.file for name, info in index.tensors.items()} == dict(
        zip("ab", SHARDS, strict=True)
    )
    assert set(index.file_sizes) == set(SHARDS)


def test_digest_follows_config_and_headers(single: Path) -> None:
    first = open_at(single).digest()
    assert open_at(single).digest() == first
    (single / "config.json").write_text('{"model_type":  "llama"}')
    second = open_at(single).digest()
    save_file({"a": A, "c": B}, single / "model.safetensors")
    assert len({first, second, open_at(single).digest()}) == 3


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ObjectNotFound):
            open_at(path)


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    refused(single, "no config.json")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested"),
        (" " * (MAX_CONFIG_BYTES + 1), "over the limit"),
    ],
)
def test_bad_configs(single: Path, config: str, words: str) -> None:
    (single / "config.json").write_text(config)
    refused(single, words)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pkl", "a/b.ckpt"])
def test_pickled_weights_are_refused(single: Path, name: str) -> None:
    (single / "model.safetensors").unlink()
    (single / name).parent.mkdir(exist_ok=True)
    (single / name).write_bytes(b"x")
    error = refused(single, "pickled")
    assert ("strucprune convert" in str(error)) == (name == "pytorch_model.bin")


def test_pickled_weights_beside_safetensors_are_ignored(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(b"x")
    assert len(open_at(single).tensors) == 2


GGUF = b"GGUF\x03\x00\x00\x00"
FOLDERS = {
    "adapter": (
        ("adapter_config.json", "adapter_model.safetensors"),
        "adapter",
        "merge_and_unload",
    ),
    "old adapter": (("adapter_config.json", "adapter_model.bin"), "adapter", "merge_and_unload"),
    "gguf": (("model-q4.gguf", "README.md"), r"GGUF\) \('model-q4.gguf'", "made from"),
    "gguf, config": (("config.json", "m.gguf"), "GGUF", "made from"),
    "Meta": (("consolidated.00.pth", "params.json", "tokenizer.model"), "Meta's", "transformers"),
    "Mistral": (("config.json", "consolidated.safetensors"), "Mistral's", "transformers"),
    "onnx": (("config.json", "onnx/model.onnx", "model.onnx"), "ONNX", "exported from"),
    "TensorFlow": (("config.json", "tf_model.h5"), "another framework", "safetensors"),
    "Flax": (("config.json", "flax_model.msgpack"), "another framework", "safetensors"),
    "diffusers": (("model_index.json", "unet/config.json"), "diffusers", "config.json"),
    "below": (("a/config.json", "a/model.safetensors"), "one in 'a' there", "Name .*/a\\."),
    "two below": (("a/config.json", "b/config.json"), "one in 'a' there", "of one model"),
    "no config": (
        ("model.safetensors",),
        "no config.json beside 'model.saf",
        "next to the weights",
    ),
    "tokenizer": (("tokenizer.json",), "no config.json under", "directory or prefix that holds"),
    "no index": (("config.json", "model-00001-of-00002.safetensors"), "is not", "Copy it next"),
    "other name": (("config.json", "weights.safetensors"), "neither", "name it model.safetensors"),
    "no weights": (("config.json", "tokenizer.json"), "no weights under", "Copy the weights"),
}


@pytest.mark.parametrize(("names", "what", "remedy"), FOLDERS.values(), ids=FOLDERS)
def test_what_is_no_model_is_named(
    tmp_path: Path, names: tuple[str, ...], what: str, remedy: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else GGUF)
    error = refused(tmp_path, what)
    assert re.search(remedy, str(error.remedy))


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("model.safetensors", "names a file", "Name the one that holds it: .*/models$"),
        ("m.gguf", "GGUF", "made from"),
        ("consolidated.00.pth", "Meta's", "layout of transformers"),
        ("model.tar.gz", "is an archive", "Unpack it"),
        ("model", "names a file", "holds it"),
    ],
)
def test_a_file_is_no_directory(tmp_path: Path, name: str, what: str, remedy: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).write_bytes(GGUF)
    error = refused(tmp_path / "models" / name, what)
    assert re.search(remedy, str(error.remedy))


def test_ids_of_a_hub_are_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match=r"there is no directory .* hf://org/name"):
        open_at(tmp_path / "meta-llama/Llama-3.1-8B")


def test_several_missing_shards(sharded: Path) -> None:
    for name in SHARDS:
        (sharded / name).unlink()
    error = refused(sharded, f"2 of the 2 shards .* missing, first {SHARDS[0]}, {SHARDS[1]}")
    assert error.remedy == "Copy the missing files next to the others."


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    refused(single, "neither")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    refused(sharded, f"{SHARDS[1]} is missing")


def test_a_truncated_shard_is_named_with_its_sizes(sharded: Path) -> None:
    path = sharded / SHARDS[0]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    message = str(refused(sharded, f"{SHARDS[0]} is truncated"))
    assert str(size) in message
    assert str(size - 5) in message


def test_a_tensor_that_its_shard_lacks(sharded: Path) -> None:
    write_map(sharded, {"a": SHARDS[0], "b": SHARDS[0]})
    refused(sharded, "does not hold it")


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        ".safetensors",
        "model.bin",
        "x.safetensors\n",
        "é.safetensors",
        1,
        None,
        ["x.safetensors"],
    ],
)
def test_unsafe_shard_names(sharded: Path, file: object) -> None:
    write_map(sharded, {"a": SHARDS[0], "b": file})
    refused(sharded, "unsafe")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_bad_weight_maps(sharded: Path, weight_map: object) -> None:
    write_map(sharded, weight_map)
    refused(sharded, "no weight_map")


def test_too_many_files(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strucprune_core.checkpoint.index.MAX_OBJECTS", 2)
    refused(single, "more than 2 files")


def test_headers_are_bounded_in_sum(sharded: Path) -> None:
    """Each header has a limit of its own, but all are held in memory together."""
    for shard, name, array in zip(SHARDS, "ab", (A, B), strict=True):
        save_file({name: array}, sharded / shard, metadata={"longer than the index": "x" * 400})
    largest = max(
        8 + int.from_bytes((sharded / shard).read_bytes()[:8], "little") for shard in SHARDS
    )
    with pytest.raises(InvalidCheckpoint, match=f"together hold more than {largest} bytes"):
        open_checkpoint(LocalStore(sharded), lambda _: Allowance(header_bytes=largest))


def test_tensors_are_counted_before_they_are_parsed(
    single: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all files, and never more of them parsed than allowed."""
    assert len(open_checkpoint(LocalStore(sharded), lambda _: Allowance(tensors=2)).tensors) == 2
    parsed: list[str] = []

    def parse(data: bytes, what: str, *, max_depth: int) -> dict[str, object]:
        parsed.append(what)
        return parse_object(data, what, max_depth=max_depth)

    monkeypatch.setattr(header, "parse_object", parse)
    save_file({f"t{number}": A[:0] for number in range(20)}, single / SHARDS[1])
    for names in (SHARDS, SHARDS[1:]):
        write_map(single, dict(zip("ab", names, strict=False)))
        (single / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(InvalidCheckpoint, match="more tensors than a model of this config"):
            open_checkpoint(LocalStore(single), lambda _: Allowance(tensors=4))
    assert parsed == [f"the header of {SHARDS[0]}"]


def test_the_index_is_bounded_by_the_config_too(sharded: Path) -> None:
    write_map(sharded, {f"t{number}": SHARDS[0] for number in range(1000)})
    with pytest.raises(
        InvalidCheckpoint, match=f"{SHARD_INDEX} has .* bytes, over the limit of 2,000"
    ):
        open_checkpoint(LocalStore(sharded), lambda _: Allowance(header_bytes=2000))


def test_an_index_of_very_many_files(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_SHARDS", 1)
    assert "max_shard_size" in str(refused(sharded, "names 2 files, over the limit of 1"))


def test_a_model_that_cannot_be_is_refused_before_its_weights_are_read(sharded: Path) -> None:
    def allow(config: object) -> Allowance:
        assert config == {"model_type": "llama"}
        raise UnsupportedArchitecture("no")

    (sharded / SHARD_INDEX).write_text("not read")
    with pytest.raises(UnsupportedArchitecture):
        open_checkpoint(LocalStore(sharded), allow)
