from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import (
    AccessDenied,
    InvalidCheckpoint,
    InvalidSpec,
    InvalidText,
    Mend,
    ObjectNotFound,
    OutputNotEmpty,
    StorageError,
    StorageUnavailable,
    StrucPruneError,
    naming_field,
)
from strucprune_core.models.families import parse_config
from strucprune_core.plan.inspection import (
    TEXT_PROBE_BYTES,
    JobFacts,
    check_reach,
    check_text,
    examine_job,
    inspect_job,
    inspect_model,
)
from strucprune_core.plan.uniform_heads import uniform_shape
from strucprune_core.spec import JobSpec, PruningSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store
from tests.core.models.hub_configs import HUB


@pytest.fixture
def body(tiny_model: Path, text_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": {"uri": str(tiny_model)},
        "output": {"uri_prefix": str(tmp_path / "out")},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": str(text_file), "samples": 4, "sequence_length": 64},
        "evaluation": {"uri": str(text_file), "sequences": 2, "sequence_length": 64},
    }


def changed(body: dict[str, Any], **parts: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate({**body, **{k: {**body[k], **v} for k, v in parts.items()}})


def only_issue(spec: JobSpec, kind: type[StrucPruneError], field: str) -> StrucPruneError:
    """The job has one issue, which both ways of inspecting find."""
    issues = examine_job(spec, open_store).issues
    assert [(type(issue), issue.field) for issue in issues] == [(kind, field)]
    with pytest.raises(kind) as caught:
        inspect_job(spec, open_store)
    assert caught.value.as_dict() == issues[0].as_dict()
    for mend in issues[0].mends:
        left = examine_job(mended(spec, mend), open_store).issues
        assert issues[0].message not in [issue.message for issue in left]
    return issues[0]


def mended(spec: JobSpec, mend: Mend) -> JobSpec:
    """The job after a mend."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    *path, name = mend.field.split(".")
    section = body
    for each in path:
        section = section.setdefault(each, {})
    section[name] = mend.value
    if mend.value is None:
        del section[name]
    return JobSpec.model_validate(body)


def test_a_good_job(body: dict[str, Any], text_file: Path) -> None:
    facts = inspect_job(changed(body), open_store)
    assert isinstance(facts, JobFacts)
    assert facts.model.config.intermediate_sizes == (192,) * 4
    assert facts.calibration_bytes == facts.evaluation_bytes == text_file.stat().st_size
    assert examine_job(changed(body), open_store).issues == []
    without = JobSpec.model_validate({**body, "evaluation": None})
    assert inspect_job(without, open_store).evaluation_bytes is None


def test_no_model_there(body: dict[str, Any], tmp_path: Path) -> None:
    spec = changed(body, model={"uri": str(tmp_path / "nowhere")})
    only_issue(spec, ObjectNotFound, "model.uri")


def test_a_model_without_tokenizer(body: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(body["model"]["uri"], model)
    (model / "tokenizer.json").unlink()
    issue = only_issue(changed(body, model={"uri": str(model)}), InvalidCheckpoint, "model.uri")
    assert "save_pretrained" in str(issue)


def test_output_not_empty(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "x").write_text("x")
    assert "deep/x" in str(only_issue(changed(body), OutputNotEmpty, "output.uri_prefix"))


def test_output_that_cannot_be_written(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    issue = only_issue(changed(body), StorageError, "output.uri_prefix")
    assert "out is a file" in str(issue)


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, ObjectNotFound),
        (b"", InvalidText),
        (b"much too short", InvalidText),
        (b"\xff\xfe" * 1000, InvalidText),
        (b"x" * 1000 + "é".encode()[:1], InvalidText),
    ],
)
def test_bad_texts(
    body: dict[str, Any],
    tmp_path: Path,
    part: str,
    content: bytes | None,
    kind: type[StrucPruneError],
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    only_issue(changed(body, **{part: {"uri": str(path)}}), kind, f"{part}.uri")


OTHER_TEXTS = {
    "gzip": (gzip.compress(b'{"text": "a"}\n' * 99), "compressed (gzip). Unpack it"),
    "bzip2": (bz2.compress(b"some words " * 99), "compressed (bzip2). Unpack it"),
    "xz": (lzma.compress(b"some words " * 99), "compressed (xz). Unpack it"),
    "zip": (b"PK\x03\x04" + b"x" * 999, "an archive (zip)"),
    "UTF-16": ("some words".encode("utf-16"), "UTF-16 or UTF-32, not UTF-8. Convert it to UTF-8"),
    "PDF": (b"%PDF-1.7\n" + b"x" * 999, "a PDF document"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
}


@pytest.mark.parametrize(("content", "words"), OTHER_TEXTS.values(), ids=OTHER_TEXTS)
@pytest.mark.parametrize("name", ["d.txt", "d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_texts_of_other_formats(
    body: dict[str, Any], tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    spec = changed(body, calibration={"uri": str(tmp_path / name)})
    assert words in str(only_issue(spec, InvalidText, "calibration.uri"))


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_parquet_by_another_name(body: dict[str, Any], tmp_path: Path, part: str) -> None:
    (tmp_path / "d.txt").write_bytes(b"PAR1" + b"x" * 9999)
    spec = changed(body, **{part: {"uri": str(tmp_path / "d.txt")}})
    assert "set its format to parquet" in str(only_issue(spec, InvalidText, f"{part}.uri"))


def test_a_text_needs_as_many_bytes_as_tokens(body: dict[str, Any]) -> None:
    spec = changed(body, calibration={"samples": 60_000})
    assert "cannot hold" in str(only_issue(spec, InvalidText, "calibration.uri"))


def test_a_text_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(InvalidText, match="over the limit"):
        check_text(LocalStore(tmp_path), "big.txt", sequences=1, sequence_length=8)


def test_a_character_cut_by_the_probe_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"x" * (TEXT_PROBE_BYTES - 1) + "é and more".encode())
    assert check_text(LocalStore(tmp_path), "t.txt", sequences=1, sequence_length=8) > 0


@pytest.mark.parametrize(
    ("name", "content", "calibration", "field", "reason"),
    [
        ("d.jsonl", '{"body": "x"}\n' * 99, {}, "calibration.uri", "no field 'text'"),
        ("d.jsonl", "no json\n" * 99, {}, "calibration.uri", "line 1"),
        ("d.jsonl", '{"text": 3}\n' * 99, {}, "calibration.uri", "a number, not text"),
        ("d.jsonl", '{"text": "x"}\n', {}, "calibration.uri", "cannot hold"),
        ("d.jsonl", "\n" * 999, {}, "calibration.uri", "blank lines"),
        ("d.jsonl", "", {}, "calibration.uri", "empty"),
        ("d.parquet", "no parquet " * 99, {}, "calibration.uri", "as parquet"),
        ("d.txt", "no parquet " * 99, {"format": "parquet"}, "calibration.uri", "as parquet"),
        (None, "", {}, "calibration.uri", "no text"),
    ],
)
def test_bad_documents(
    body: dict[str, Any],
    tmp_path: Path,
    name: str | None,
    content: str,
    calibration: dict[str, Any],
    field: str,
    reason: str,
) -> None:
    path = tmp_path / (name or "gone.jsonl")
    if name:
        path.write_text(content)
    spec = changed(body, calibration={"uri": str(path), **calibration})
    kind = InvalidText if name else ObjectNotFound
    assert reason in str(only_issue(spec, kind, field))


def test_documents_that_do(body: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    (tmp_path / "d.jsonl").write_text(json.dumps({"body": "word " * 200}) + "\n")
    pq.write_table(pa.table({"body": ["word " * 200]}), tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.parquet"):
        calibration = {"uri": str(tmp_path / name), "field": "body"}
        facts = inspect_job(changed(body, calibration=calibration), open_store)
        assert facts.calibration_bytes == (tmp_path / name).stat().st_size
        spec = changed(body, calibration={"uri": str(tmp_path / name)})
        where = "calibration.uri" if name == "d.jsonl" else "calibration.field"
        assert "'body'" in str(only_issue(spec, InvalidText, where))


def test_conversations_need_a_chat_template(body: dict[str, Any], tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hello"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    calibration = {"uri": str(tmp_path / "d.jsonl"), "chat_template": True}
    spec = changed(body, calibration=calibration)
    only_issue(spec, InvalidSpec, "calibration.chat_template")
    model = tmp_path / "model"
    shutil.copytree(body["model"]["uri"], model)
    # It is not run here, so that it is endless does no harm.
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (model / "chat_template.jinja").write_text(endless)
    spec = changed(body, model={"uri": str(model)}, calibration=calibration)
    assert inspect_job(spec, open_store).calibration_bytes


def test_a_model_that_writes_its_own_text(body: dict[str, Any]) -> None:
    spec = JobSpec.model_validate({**body, "calibration": {"source": "self", "samples": 4}})
    assert inspect_job(spec, open_store).calibration_bytes is None
    assert examine_job(spec, open_store).issues == []


@pytest.mark.parametrize(
    ("pruning", "reachable"),
    [
        ({"sparsity": 0.95}, "0.901"),
        ({"sparsity": 0.6, "min_keep_fraction": 0.5}, "0.5"),
        ({"sparsity": 0.6, "min_keep_fraction": 0.5, "layout": "uniform"}, "0.5"),
        ({"sparsity": 0.5, "multiple_of": 128}, "0.3333"),
        ({"sparsity": 0.1, "multiple_of": 1024}, "nothing to remove"),
    ],
)
def test_a_sparsity_out_of_reach(
    body: dict[str, Any], pruning: dict[str, Any], reachable: str
) -> None:
    issue = only_issue(changed(body, pruning=pruning), InvalidSpec, "pruning.sparsity")
    assert reachable in str(issue)


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_a_sparsity_of_less_than_a_channel(body: dict[str, Any], layout: str) -> None:
    spec = changed(body, pruning={"sparsity": 0.001, "layout": layout})
    assert "less than one structure" in str(only_issue(spec, InvalidSpec, "pruning.sparsity"))


def test_a_uniform_layout_needs_equal_layers(body: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(body["model"]["uri"], model)
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "strucprune_llama"
    config["strucprune"] = {
        "format_version": 2,
        "layers": [
            {"ffn": [width], "query_heads": 4, "kv_heads": 2} for width in (100, 192, 192, 192)
        ],
    }
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    for name in ("gate", "up"):
        key = f"model.layers.0.mlp.{name}_proj.weight"
        tensors[key] = tensors[key][:100].clone()
    key = "model.layers.0.mlp.down_proj.weight"
    tensors[key] = tensors[key][:, :100].clone()
    save_file(tensors, model / "model.safetensors")
    spec = changed(body, model={"uri": str(model)})
    assert inspect_job(spec, open_store).model.config.ffn_channels == 676
    spec = changed(body, model={"uri": str(model)}, pruning={"layout": "uniform"})
    only_issue(spec, InvalidSpec, "pruning.layout")


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_sequences_longer_than_the_context(body: dict[str, Any], part: str) -> None:
    spec = changed(body, **{part: {"sequence_length": 2049}})
    assert "2048" in str(only_issue(spec, InvalidSpec, f"{part}.sequence_length"))


def test_all_issues_are_collected(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    spec = changed(
        body,
        pruning={"sparsity": 0.99},
        calibration={"uri": str(tmp_path / "no.txt"), "sequence_length": 4096},
        evaluation={"uri": "/"},
    )
    fields = [issue.field for issue in examine_job(spec, open_store).issues]
    assert fields == [
        "pruning.sparsity",
        "calibration.sequence_length",
        "output.uri_prefix",
        "calibration.uri",
        "evaluation.uri",
    ]


def test_the_caller_decides_what_may_be_opened(body: dict[str, Any]) -> None:
    def open_none(uri: str) -> Store:
        raise AccessDenied(f"{uri} is not yours")

    issues = examine_job(changed(body), open_none).issues
    assert [(type(issue), issue.field) for issue in issues] == [
        (AccessDenied, "model.uri"),
        (AccessDenied, "output.uri_prefix"),
        (AccessDenied, "calibration.uri"),
        (AccessDenied, "evaluation.uri"),
    ]


def test_a_field_that_is_named_already_stays() -> None:
    for first, expected in (("inner", "inner"), (None, "outer")):
        with pytest.raises(InvalidSpec) as caught, naming_field("outer"):
            raise InvalidSpec("wrong", field=first)
        assert caught.value.field == expected


@pytest.mark.services
def test_a_job_on_s3(body: dict[str, Any], s3_server: S3Server) -> None:
    settings = S3Settings(
        s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    bucket = f"inspect-{uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    store = open_store(f"s3://{bucket}/models/tiny", settings)
    for path in Path(body["model"]["uri"]).iterdir():
        store.upload(path.name, path)
    text = open_store(f"s3://{bucket}", settings)
    text.upload("text.txt", Path(body["calibration"]["uri"]))
    spec = changed(
        body,
        model={"uri": f"s3://{bucket}/models/tiny"},
        output={"uri_prefix": f"s3://{bucket}/out"},
        calibration={"uri": f"s3://{bucket}/text.txt"},
        evaluation={"uri": f"s3://{bucket}/text.txt"},
    )
    facts = inspect_job(spec, lambda uri: open_store(uri, settings))
    local = inspect_model(LocalStore(Path(body["model"]["uri"])))
    assert facts.model.index.digest() == local.index.digest()

    elsewhere = changed(
        body,
        model={"uri": "s3://no-such-bucket/model"},
        output={"uri_prefix": "s3://no-such-bucket/out"},
        calibration={"uri": "s3://no-such-bucket/text.txt"},
        evaluation={"uri": f"s3://{bucket}/text.txt"},
    )
    issues = examine_job(elsewhere, lambda uri: open_store(uri, settings)).issues
    assert [(type(issue), issue.field) for issue in issues] == [
        (ObjectNotFound, "model.uri"),
        (ObjectNotFound, "output.uri_prefix"),
        (ObjectNotFound, "calibration.uri"),
    ]
    assert all("no such bucket" in str(issue) for issue in issues)

    wrong = S3Settings(s3_server.endpoint_url, "us-east-1", "nobody", "wrong", "path")
    issues = examine_job(spec, lambda uri: open_store(uri, wrong)).issues
    assert {type(issue) for issue in issues} == {AccessDenied}
    assert len(issues) == 4

    nobody = S3Settings("http://127.0.0.1:1", "us-east-1", "x", "y", "path")
    with pytest.raises(StorageUnavailable) as caught:
        inspect_job(spec, lambda uri: open_store(uri, nobody))
    assert caught.value.field == "model.uri"


def uniform(**changes: Any) -> PruningSpec:
    return PruningSpec.model_validate(
        {"sparsity": 0.25, "structures": ["kv_groups"], "layout": "uniform", **changes}
    )


@pytest.mark.parametrize(
    ("name", "changes", "reason", "counts"),
    [
        ("google/gemma-2-9b", {}, "12 query heads with a hidden size of 3584", [14, 8, 4, 2]),
        ("google/gemma-2-9b", {"max_layer_sparsity": 0.6}, "12 query heads", [14, 8]),
        (
            "google/gemma-2-27b",
            {"structures": ["ffn_channels", "kv_groups"], "sparsity": 0.3},
            "22 query heads",
            [24, 18, 16, 12],
        ),
        ("microsoft/Phi-3.5-mini-instruct", {}, "24 query heads of width 96", []),
        ("facebook/opt-125m", {}, "9 query heads of width 64", []),
        ("openai-community/gpt2", {}, "9 query heads of width 64", []),
        ("EleutherAI/pythia-160m", {}, "9 query heads of width 64", []),
    ],
)
def test_uniform_heads_that_transformers_would_refuse(
    name: str, changes: dict[str, Any], reason: str, counts: list[int]
) -> None:
    """Found before the work, not by the reload check after it; what is offered instead would do."""
    config = parse_config(HUB[name][0])
    with pytest.raises(InvalidSpec, match=f"cannot have {reason}") as caught:
        check_reach(uniform(**changes), config)
    remedy = str(caught.value.remedy)
    assert caught.value.field == "pruning.layout"
    assert "'per_layer'" in remedy
    offered = re.findall(r"([0-9.]+) \(([0-9]+) query heads\)", remedy)
    assert [int(heads) for _, heads in offered] == counts
    assert ("no smaller number" in remedy) == (not counts)
    for sparsity, heads in offered:
        spec = uniform(**{**changes, "sparsity": float(sparsity)})
        check_reach(spec, config)
        shape = uniform_shape(spec, config)
        assert shape is not None
        assert {block.query_heads for block in shape.blocks} == {int(heads)}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("google/gemma-3-1b-pt", {"structures": ["query_heads"]}),  # 1152, of four heads three stay
        ("meta-llama/Llama-3.1-8B", {}),  # 24 of 32 heads do not divide 4096: mistral's do
        ("mistralai/Mistral-7B-v0.1", {}),
        ("Qwen/Qwen2.5-7B", {"sparsity": 0.3}),
    ],
)
def test_uniform_heads_that_transformers_has(name: str, changes: dict[str, Any]) -> None:
    check_reach(uniform(**changes), parse_config(HUB[name][0]))


def test_a_llama_with_biases_has_no_other_class() -> None:
    raw = {**HUB["meta-llama/Llama-3.1-8B"][0], "mlp_bias": True}
    with pytest.raises(InvalidSpec, match="mistral, which can, has no biases") as caught:
        check_reach(uniform(), parse_config(raw))
    assert "0.5 (16 query heads)" in str(caught.value.remedy)
