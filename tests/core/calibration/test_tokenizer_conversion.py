"""A tokenizer.json is made of older files: as transformers reads them, and of nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from strucprune_core.calibration import text_process
from strucprune_core.calibration.own_tokenizer import with_tokenizer
from strucprune_core.calibration.process_limits import TextLimits
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec
from strucprune_core.plan.inspection import inspect_job, inspect_model
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import run, tiny_spec
from tests.support.sentencepiece import sentencepiece_model
from tests.support.tiny_llama import make_tiny_llama

TEXTS = ("hello world, this is a test", "é 日本 and numbers 1234", "a\n\n  b\tc")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def in_two_files(model: Path, **settings: Any) -> Tokenizer:
    """Replace tokenizer.json by vocab.json and merges.txt; what it was."""
    path = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.model.save(str(model))
    path.unlink()
    settings = {"tokenizer_class": "GPT2Tokenizer", **settings}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def in_sentencepiece(model: Path, **settings: Any) -> None:
    """Replace tokenizer.json by tokenizer.model."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(sentencepiece_model())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, **settings}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))


def made_of(model: Path) -> Tokenizer:
    index = with_tokenizer(inspect_model(LocalStore(model)).index)
    assert not (model / "tokenizer.json").exists()
    return Tokenizer.from_str(bytes(index.store.read("tokenizer.json")).decode())


def test_vocabulary_and_merges(model: Path) -> None:
    before = in_two_files(model)
    after = made_of(model)
    for text in TEXTS:
        ids = after.encode(text, add_special_tokens=False).ids
        assert ids == before.encode(text, add_special_tokens=False).ids


def test_sentencepiece(model: Path) -> None:
    in_sentencepiece(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    after = made_of(model)
    for text in TEXTS:
        assert after.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_special_tokens_are_kept(model: Path) -> None:
    in_sentencepiece(model, add_bos_token=True)
    assert made_of(model).encode("hello").ids[0] == 1
    added = {"700": {"content": "<|user|>", "special": True}}
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added})
    )
    assert "<|user|>" in made_of(model).get_vocab()


def test_a_job_on_such_a_model(model: Path, text_file: Path, tmp_path: Path) -> None:
    in_two_files(model)
    report = run(tiny_spec(model, text_file, tmp_path / "out"), tmp_path)
    assert any("vocab.json and merges.txt" in line for line in report.warnings)
    assert "tokenizer.json" in {entry.name for entry in report.files}
    after = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert after.encode(TEXTS[0]).ids
    assert inspect_model(LocalStore(tmp_path / "out")).index.other_files[0] == "tokenizer.json"


def test_no_tokenizer_at_all(model: Path) -> None:
    in_two_files(model)
    (model / "merges.txt").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.model, or vocab\.json and merges"):
        inspect_model(LocalStore(model))


@pytest.mark.parametrize("older", [in_two_files, in_sentencepiece])
def test_gguf_of_such_a_model(
    model: Path, text_file: Path, tmp_path: Path, older: Callable[[Path], object]
) -> None:
    """The file is that of the model with the tokenizer.json that was made."""
    shutil.rmtree(model)
    make_tiny_llama(model, vocab=600)
    older(model)
    having = Path(shutil.copytree(model, tmp_path / "having" / model.name))
    index = with_tokenizer(inspect_model(LocalStore(model)).index)
    (having / "tokenizer.json").write_bytes(index.store.read("tokenizer.json"))
    files = []
    for number, each in enumerate((model, having)):
        pruning = {"sparsity": 0.3, "exports": ["gguf"]}
        spec = tiny_spec(each, text_file, tmp_path / f"out-{number}", pruning=pruning)
        run(spec, tmp_path / f"run-{number}")
        files.append((tmp_path / f"out-{number}/gguf/model.gguf").read_bytes())
    assert files[0] == files[1]


def test_gguf_of_a_tokenizer_that_it_cannot_hold(
    model: Path, text_file: Path, tmp_path: Path
) -> None:
    in_two_files(model, add_prefix_space=True)
    pruning = {"sparsity": 0.3, "exports": ["gguf"]}
    spec = tiny_spec(model, text_file, tmp_path / "out", pruning=pruning)
    inspect_job(spec, lambda uri: LocalStore(Path(uri)))
    with pytest.raises(InvalidSpec, match="pre_tokenizer") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "pruning.exports"
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


def test_code_of_a_checkpoint_does_not_run(model: Path, tmp_path: Path) -> None:
    code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    in_sentencepiece(model, tokenizer_class="OwnTokenizer", auto_map=code)
    (model / "tokenization_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InvalidCheckpoint, match="no class 'OwnTokenizer'") as caught:
        made_of(model)
    assert "AutoTokenizer" in str(caught.value.remedy)
    assert not (tmp_path / "ran").exists()


def test_settings_name_no_other_files(model: Path, tmp_path: Path) -> None:
    before = in_two_files(model)
    secret = tmp_path / "secret.json"
    before.save(str(secret))
    changed = json.loads(secret.read_text())
    changed["added_tokens"].append(
        {"id": 900, "content": "<secret>", "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
    )
    secret.write_text(json.dumps(changed))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "tokenizer_file": str(secret)})
    )
    assert "<secret>" not in made_of(model).get_vocab()


@pytest.mark.parametrize("data", [b"", b"no protobuf", b"\x0a\xff\xff\xff\xff\x7f"])
def test_a_damaged_file(model: Path, data: bytes) -> None:
    in_sentencepiece(model)
    (model / "tokenizer.model").write_bytes(data)
    with pytest.raises(InvalidCheckpoint):
        made_of(model)


def test_too_much_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_sentencepiece(model)
    limits = TextLimits(seconds=0.1, seconds_per_converted_mib=0.0)
    monkeypatch.setattr(text_process, "LIMITS", limits)
    with pytest.raises(InvalidCheckpoint, match="processor time"):
        made_of(model)


def test_a_model_with_the_file_is_left_alone(model: Path) -> None:
    index = open_checkpoint(LocalStore(model))
    assert with_tokenizer(index) is index
