"""Answers to a harness's requests: those of its own backend for transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, InvalidText
from strucprune_core.evaluation.tasks.answers import Answers, AnswerSettings, rolling_windows
from strucprune_core.evaluation.tasks.opened import end_tokens, open_answers
from strucprune_core.evaluation.tasks.scoring import Continuation
from strucprune_core.plan.task_memory import context_of

instance = pytest.importorskip("lm_eval.api.instance")

PAIRS = [
    ("The model writes", " a text"),
    ("The model writes ", "a text"),
    ("The model writes", " another, longer text."),
    ("", "The model"),
    ("", "<|endoftext|>The model"),
    ("<|endoftext|>A", " model"),
    ("Question: why?\n\nAnswer:", " no"),
    ("Question: why?\n\nAnswer:", " so"),
    ("word " * 60, "and then"),
]
TEXTS = ["The model writes a text. " * 12, "naïve", "a", ""]
UNTIL: dict[str, Any] = {"until": ["\n", " the"], "max_gen_toks": 8, "do_sample": False}
PROMPTS: list[tuple[str, dict[str, Any]]] = [
    ("The model", UNTIL),
    ("word " * 60, UNTIL),
    ("naïve 東京", {"max_gen_toks": 5}),
]


def instances(kind: str, args: list[tuple[Any, ...]]) -> list[Any]:
    return [
        instance.Instance(request_type=kind, doc={}, arguments=each, idx=number)
        for number, each in enumerate(args)
    ]


@pytest.fixture(scope="module")
def answers(tiny_model: Path) -> Iterator[Answers]:
    with open_answers(str(tiny_model), device="cpu", context_tokens=40) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    """The harness's own backend."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(tiny_model), device="cpu", dtype="float32", max_length=40, batch_size=4
    )


def test_log_likelihoods(answers: Answers, reference: Any) -> None:
    before = answers.cut.requests
    found = answers.log_likelihoods(PAIRS)
    wanted = reference.loglikelihood(instances("loglikelihood", PAIRS))
    for one, other, pair in zip(found, wanted, PAIRS, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4), pair
        assert one[1] == other[1], pair
    assert answers.cut.requests == before + 1


def test_rolling_log_likelihoods(answers: Answers, reference: Any) -> None:
    found = answers.rolling_log_likelihoods(TEXTS)
    args = [(text,) for text in TEXTS]
    wanted = reference.loglikelihood_rolling(instances("loglikelihood_rolling", args))
    assert found == pytest.approx(wanted, abs=1e-3)


def test_continuations(answers: Answers, reference: Any) -> None:
    found = answers.continuations(PROMPTS)
    assert found == reference.generate_until(instances("generate_until", PROMPTS))
    assert any(found)


def test_an_answer_ends_before_what_ends_it(answers: Answers) -> None:
    (whole,) = answers.continuations([("The model", {"max_gen_toks": 6})])
    stop = whole[len(whole) // 2 :][:2]
    (found,) = answers.continuations([("The model", {"max_gen_toks": 6, "until": [stop]})])
    assert found == whole.split(stop)[0]


def test_the_windows_of_a_text_are_the_harness_s() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in range(12):
        for most in (1, 2, 3, 5, 20):
            tokens = list(range(100, 100 + length))
            theirs = get_rolling_token_windows(tokens, 7, most, 1)
            wanted = [
                Continuation(tuple(given), tuple(scored))
                for given, scored in map(make_disjoint_window, theirs)
            ]
            assert list(rolling_windows(tokens, 7, most)) == wanted


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}],
    ids=str,
)
def test_answers_that_are_not_greedy_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="greedy"):
        AnswerSettings.of(settings)


def test_settings_of_answers() -> None:
    assert AnswerSettings.of({}) == AnswerSettings((), 256)
    given = {"until": "\n", "max_new_tokens": 3, "temperature": 0.0, "do_sample": False}
    assert AnswerSettings.of(given) == AnswerSettings(("\n",), 3)
    assert AnswerSettings.of({"until": ["", "x"]}).until == ("x",)


def test_what_cannot_be_scored_is_refused(answers: Answers) -> None:
    with pytest.raises(InvalidText, match="no tokens"):
        answers.log_likelihoods([("The model", "")])
    with pytest.raises(InvalidText, match="at most 40"):
        answers.log_likelihoods([("The model", "word " * 60)])
    with pytest.raises(InvalidSpec, match="answers of 40 tokens"):
        answers.continuations([("The model", {"max_gen_toks": 40})])


def test_a_tokenizer_without_special_tokens(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((model / name).read_text())
        for key in ("bos_token", "eos_token", "bos_token_id", "eos_token_id"):
            values.pop(key, None)
        (model / name).write_text(json.dumps(values))
    with open_answers(str(model), device="cpu") as opened:
        assert len(opened.log_likelihoods([("The model", " writes")])) == 1
        with pytest.raises(InvalidCheckpoint, match="begins or ends a text"):
            opened.log_likelihoods([("", "The model")])


def test_the_tokens_that_end_answers() -> None:
    assert end_tokens({}) == frozenset()
    assert end_tokens({"eos_token_id": 3}) == {3}
    assert end_tokens({"eos_token_id": [3, 5]}) == {3, 5}


def test_the_context_is_at_most_the_model_s(answers: Answers) -> None:
    config = answers.stream.config
    assert context_of(config, 10**6) == config.max_position_embeddings
    assert context_of(config, 10) == 10
