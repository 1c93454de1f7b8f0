"""The specification: what it accepts, and its way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from strucprune_core.spec import CalibrationSpec, EvaluationSpec, JobSpec, PruningSpec, Unfit

# Of the job of `body` without anything else, by versions without samples.
FINGERPRINT = "945fe86bab3fe39e1f287a88cf21c11bfe5c68ac036a08fa0274c317fb979d2e"


def body(**evaluation: Any) -> dict[str, Any]:
    return {
        "model": {"uri": "s3://bucket/model"},
        "output": {"uri_prefix": "s3://bucket/out"},
        "pruning": {"sparsity": 0.5},
        "calibration": {"uri": "s3://bucket/text"},
        "evaluation": {"uri": "s3://bucket/text", **evaluation},
    }


def test_a_specification_survives_its_json() -> None:
    spec = JobSpec.model_validate(body(max_perplexity_ratio=3.5))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("number", ["1e999", "Infinity", "NaN"])
def test_numbers_are_finite(number: str) -> None:
    """JSON has no infinity: it would be written as null, which no reader takes for a number."""
    text = json.dumps(body(max_perplexity_ratio=0.125)).replace("0.125", number)
    with pytest.raises(ValidationError, match="max_perplexity_ratio"):
        JobSpec.model_validate_json(text)
    with pytest.raises(ValidationError, match="max_perplexity_ratio"):
        JobSpec.model_validate(json.loads(text))


def calibration(**fields: Any) -> CalibrationSpec:
    return CalibrationSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"uri": "a.txt"}, "text"),
        ({"uri": "s3://bucket/no-name"}, "text"),
        ({"uri": "s3://bucket/a.b/c"}, "text"),
        ({"uri": "s3://bucket/a.JSONL"}, "jsonl"),
        ({"uri": "a.ndjson"}, "jsonl"),
        ({"uri": "a.json"}, "jsonl"),
        ({"uri": "train-00000-of-00001.parquet"}, "parquet"),
        ({"uri": "a.parquet", "format": "text"}, "text"),
        ({"uri": "a", "format": "jsonl"}, "jsonl"),
    ],
)
def test_the_format(fields: dict[str, Any], expected: str) -> None:
    assert calibration(**fields).file_format == expected


def test_the_field() -> None:
    assert calibration(uri="a.jsonl").document_field == "text"
    assert calibration(uri="a.jsonl", chat_template=True).document_field == "messages"
    assert calibration(uri="a.jsonl", chat_template=True, field="talk").document_field == "talk"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "uri is missing"),
        ({"source": "file"}, "uri is missing"),
        ({"source": "self", "uri": "a.txt"}, "source 'self' reads no file; leave out uri"),
        ({"source": "self", "chat_template": True}, "leave out chat_template"),
        ({"source": "self", "field": "x", "format": "jsonl"}, "leave out field, format"),
        ({"uri": "a.txt", "chat_template": True}, "chat_template needs documents with fields"),
        ({"uri": "a.txt", "field": "x"}, "field needs documents with fields"),
        ({"uri": "a.jsonl", "format": "xml"}, "Input should be"),
        ({"uri": "a.jsonl", "field": ""}, "at least 1 character"),
        ({"source": "web"}, "Input should be"),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        calibration(**fields)


def test_self_with_its_defaults_spelled_out() -> None:
    body = calibration(source="self").model_dump()
    assert calibration(**body) == calibration(source="self")


def test_what_is_read_belongs_to_the_fingerprint() -> None:
    def fingerprint(**fields: Any) -> str:
        job = {
            "model": {"uri": "m"},
            "output": {"uri_prefix": "o"},
            "pruning": {"sparsity": 0.3},
            "calibration": fields,
        }
        return JobSpec.model_validate(job).result_fingerprint()

    prints = {
        fingerprint(uri="a.jsonl"),
        fingerprint(uri="a.jsonl", field="body"),
        fingerprint(uri="a.jsonl", chat_template=True),
        fingerprint(uri="a.jsonl", format="text"),
        fingerprint(source="self"),
    }
    assert len(prints) == 5


def test_how_many_workers_serve_a_job_changes_no_result() -> None:
    alone, shared = (
        JobSpec.model_validate(body() | {"runtime": runtime})
        for runtime in ({}, {"max_workers": 64})
    )
    assert (alone.runtime.max_workers, shared.runtime.max_workers) == (1, 64)
    assert alone.result_fingerprint() == shared.result_fingerprint()
    for number in (0, 65):
        with pytest.raises(ValidationError, match="max_workers"):
            JobSpec.model_validate(body() | {"runtime": {"max_workers": number}})


def test_what_a_job_is_called_changes_no_result() -> None:
    plain, named = (
        JobSpec.model_validate({**body(), "name": name}) for name in (None, "Läufe, 30 %")
    )
    assert (plain.name, named.name) == (None, "Läufe, 30 %")
    assert plain.result_fingerprint() == named.result_fingerprint()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "at least 1 character"),
        (101 * "a", "at most 100 characters"),
        ("a\nb", "one line of printable"),
        ("\u202etxt", "one line of printable"),
        ("a\x1b[31m", "one line of printable"),
        (" a", "neither begins nor ends with a space"),
        (5, "valid string"),
    ],
)
def test_names_that_hide_or_break_text(name: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        JobSpec.model_validate({**body(), "name": name})


def test_rounds_need_a_price_to_set() -> None:
    pruning = {"sparsity": 0.5, "rounds": 2}
    assert JobSpec.model_validate(body() | {"pruning": pruning}).pruning.rounds == 2
    for uniform in ({"allocation": "uniform"}, {"layout": "uniform"}):
        with pytest.raises(ValidationError, match="rounds reset the price"):
            JobSpec.model_validate(body() | {"pruning": pruning | uniform})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        JobSpec.model_validate(body() | {"pruning": pruning | {"rounds": 0}})


BOTH = ["experts", "ffn_channels"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"recover": {}, "structures": ["kv_groups"]}, "lacks 'ffn_channels'"),
        ({"temperature": 1.0}, "only used by allocation 'softmax'"),
        ({"structures": ["kv_groups", "query_heads"]}, "exclude each other"),
        ({"structures": ["kv_groups", "kv_groups"]}, "one kind twice"),
        ({"structures": ["experts", "kv_groups"]}, "together with heads"),
        ({"structures": ["experts", "ffn_channels", "query_heads"]}, "together with heads"),
        ({"structures": ["experts", "layers"]}, "together with blocks or layers"),
        (
            {"structures": BOTH, "recover": {}},
            "recover is not implemented for structures 'experts'",
        ),
        ({"structures": BOTH, "rounds": 2}, "rounds is not implemented for structures 'experts'"),
        ({"structures": BOTH, "expert_repair": True}, "expert_repair is not implemented"),
        ({"structures": BOTH, "exports": ["gguf"]}, "exports is not implemented"),
        ({"structures": BOTH, "max_sparsity_by_layer": {0: 0.1}}, "max_sparsity_by_layer is not"),
        ({"structures": BOTH, "energy": "forward"}, "compared by the model's loss"),
        ({"structures": BOTH, "allocation": "uniform"}, "compared by the model's loss"),
        ({"structures": BOTH, "layout": "uniform"}, "layout 'uniform' keeps one width"),
        (
            {"structures": ["experts"], "allocation": "uniform", "layout": "per_layer"},
            "needs an allocation that gives layers different numbers",
        ),
        (
            {"structures": ["experts"], "allocation": "threshold", "layout": "uniform"},
            "layout 'uniform' keeps one width",
        ),
        ({"structures": ["experts"], "exports": ["gguf"]}, "exports is not implemented"),
        ({"structures": ["experts"], "solver": "admm"}, "solver is not implemented"),
        ({"structures": ["experts"], "damping": 0.1}, "damping is not implemented"),
        ({"structures": ["experts"], "distill": {}}, "distill is not implemented"),
        ({"structures": ["experts"], "max_sparsity_by_layer": {0: 0.1}}, "Use layout 'per_"),
        ({"structures": ["experts"], "recover": {}}, "lacks 'ffn_channels'"),
        ({"expert_score": "reap"}, "only used by structures"),
        ({"expert_repair": True}, "only used by structures"),
    ],
)
def test_methods_that_do_not_fit(fields: dict[str, Any], reason: str) -> None:
    pruning = {"sparsity": 0.3, **fields}
    with pytest.raises(ValidationError, match=reason) as caught:
        PruningSpec.model_validate(pruning)
    for cured in cured_by_mends(pruning, caught.value):
        assert reason not in messages(PruningSpec, cured)


def cured_by_mends(body: dict[str, Any], error: ValidationError) -> list[dict[str, Any]]:
    """The body after each mend of the error, of which there are some."""
    causes = [each.get("ctx", {}).get("error") for each in error.errors()]
    mends = [mend for cause in causes if isinstance(cause, Unfit) for mend in cause.mends]
    assert mends
    changed = [{**body, mend.field: mend.value} for mend in mends]
    return [{name: value for name, value in each.items() if value is not None} for each in changed]


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [("sparsity", 30, 0.3), ("sparsity", "25%", 0.25), ("max_layer_sparsity", 60, 0.6)],
)
def test_a_percentage_is_mended(field: str, given: Any, meant: float) -> None:
    with pytest.raises(ValidationError) as caught:
        PruningSpec.model_validate({"sparsity": 0.3, field: given})
    (error,) = caught.value.errors()
    (mend,) = error["ctx"]["error"].mends_in(f"pruning.{field}")
    assert (mend.field, mend.value) == (f"pruning.{field}", meant)


@pytest.mark.parametrize(
    "fields",
    [
        {"structures": ["layers"]},
        {"structures": ["ffn_channels", "layers"]},
        {"structures": ["ffn_channels", "kv_groups"], "layout": "uniform"},
    ],
)
def test_what_a_search_does_not_fit_is_mended(fields: dict[str, Any]) -> None:
    pruning = {"target": {"max_perplexity_ratio": 1.1}, **fields}
    with pytest.raises(ValidationError) as caught:
        PruningSpec.model_validate(pruning)
    for cured in cured_by_mends(pruning, caught.value):
        PruningSpec.model_validate(cured)


def test_a_text_that_is_missing_or_not_read_is_mended() -> None:
    for fields in ({}, {"source": "self", "uri": "a.txt"}, {"source": "self", "field": "x"}):
        with pytest.raises(ValidationError) as caught:
            calibration(**fields)
        for cured in cured_by_mends(fields, caught.value):
            calibration(**cured)


def messages(kind: type[BaseModel], body: dict[str, Any]) -> str:
    """What is wrong with a section, if anything is."""
    try:
        kind.model_validate(body)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("pruning", "field", "reason"),
    [
        ({}, "sparsity", "Field required"),
        ({"structures": ["experts"]}, "sparsity", "Field required"),
        ({"sparsity": None}, "sparsity", "Field required"),
        (
            {"sparsity": 0.3, "expert_count": 4, "structures": ["experts"]},
            "sparsity",
            "exclude each other",
        ),
        ({"expert_count": 0, "structures": ["experts"]}, "expert_count", "greater than or equal"),
        ({"expert_count": 4}, None, "expert_count is only used by structures"),
        (
            {"expert_count": 4, "structures": ["experts"], "layout": "per_layer"},
            None,
            "expert_count is the number of every layer",
        ),
        (
            {"expert_count": 4, "structures": ["experts", "ffn_channels"]},
            None,
            "expert_count leaves nothing to decide",
        ),
    ],
)
def test_a_sparsity_or_a_count(pruning: dict[str, Any], field: str | None, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as raised:
        PruningSpec.model_validate(pruning)
    (error,) = raised.value.errors()
    assert error["loc"] == (() if field is None else (field,))


def test_a_count_takes_the_place_of_a_sparsity() -> None:
    pruning = PruningSpec.model_validate({"expert_count": 4, "structures": ["experts"]})
    assert (pruning.expert_count, pruning.sparsity, pruning.layout) == (4, None, "uniform")
    assert PruningSpec.model_validate(pruning.model_dump(mode="json")) == pruning


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, ("uniform", "uniform")),
        ({"allocation": "uniform"}, ("uniform", "uniform")),
        ({"layout": "uniform"}, ("uniform", "uniform")),
        ({"layout": "per_layer"}, ("per_layer", "threshold")),
        ({"allocation": "threshold"}, ("per_layer", "threshold")),
        ({"allocation": "softmax"}, ("per_layer", "softmax")),
    ],
)
def test_layers_lose_equally_many_experts_unless_told_otherwise(
    given: dict[str, Any], meant: tuple[str, str]
) -> None:
    pruning = PruningSpec.model_validate({"sparsity": 0.3, "structures": ["experts"], **given})
    assert (pruning.layout, pruning.allocation) == meant
    assert PruningSpec.model_validate(pruning.model_dump(mode="json")) == pruning


@pytest.mark.parametrize("fields", [{"prompts": ["The"]}, {"sample_tokens": 5}])
def test_what_is_about_samples_needs_samples(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set samples to true") as caught:
        EvaluationSpec.model_validate({"uri": "text", **fields})
    for cured in cured_by_mends({"uri": "text", **fields}, caught.value):
        EvaluationSpec.model_validate(cured)
    assert JobSpec.model_validate(body(samples=True, **fields)).sampled_prompts


@pytest.mark.parametrize("prompts", [[""], ["x" * 1001], ["x"] * 17])
def test_prompts_are_bounded(prompts: list[str]) -> None:
    with pytest.raises(ValidationError, match="prompts"):
        JobSpec.model_validate(body(samples=True, prompts=prompts))


def test_samples_belong_to_the_fingerprint_and_their_absence_does_not() -> None:
    without, default, named = (
        JobSpec.model_validate(body(**fields))
        for fields in ({}, {"samples": True}, {"samples": True, "prompts": ["The"]})
    )
    assert without.sampled_prompts == ()
    prints = {spec.result_fingerprint() for spec in (without, default, named)}
    assert len(prints) == 3
    # A workspace of a version without samples stays usable.
    assert without.result_fingerprint() == FINGERPRINT
