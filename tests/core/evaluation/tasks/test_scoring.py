"""Scores of continuations: those of transformers, with the weights read once for a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from strucprune_core.errors import Stopped
from strucprune_core.evaluation.tasks import scoring
from strucprune_core.evaluation.tasks.scoring import Continuation, score
from strucprune_core.models.tiles import Tiles
from tests.core.models import families
from tests.core.models.generic.streams import tiny_stream
from tests.core.models.reference import random_llama, reference_logits, stream_of
from tests.support.counted import CountedSource

VOCABULARY = 101


def requests_of(lengths: list[tuple[int, int]], vocabulary: int = VOCABULARY) -> list[Continuation]:
    """Random requests with so many tokens given and scored."""
    generator = np.random.default_rng(3)

    def some(count: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, vocabulary, count).tolist())

    return [Continuation(some(given), some(scored)) for given, scored in lengths]


LENGTHS = [(3, 2), (1, 1), (17, 5), (9, 1), (3, 8), (20, 2), (2, 2)]


def expected(model: torch.nn.Module, request: Continuation) -> tuple[float, bool]:
    """By transformers, each request alone."""
    tokens = np.array([request.input], dtype=np.int32)
    log_probs = reference_logits(model, tokens)[0].double().log_softmax(-1)
    wanted = torch.tensor(request.scored)
    found = log_probs[-len(request.scored) :]
    likely = found.gather(1, wanted[:, None]).sum()
    return float(likely), bool((found.argmax(-1) == wanted).all())


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_scores_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    model = families.random_model(variant)
    stream = stream_of(model, tmp_path / "model")
    stream = replace(stream, tiles=Tiles(micro_batch_tokens=24))
    requests = requests_of(LENGTHS, 512)
    for found, request in zip(score(stream, requests, tmp_path), requests, strict=True):
        likely, greedy = expected(model, request)
        assert found.log_likelihood == pytest.approx(likely, abs=1e-4)
        assert found.greedy == greedy


@pytest.mark.parametrize("name", ["olmo2", "recurrent_gemma", "gemma4_text"])
def test_generic_models_too(tmp_path: Path, name: str) -> None:
    stream, _, model = tiny_stream(name)
    requests = requests_of(LENGTHS, min(100, stream.config.vocab_size))
    stream = replace(stream, tiles=Tiles(micro_batch_tokens=24))
    for found, request in zip(score(stream, requests, tmp_path), requests, strict=True):
        likely, greedy = expected(model, request)
        assert found.log_likelihood == pytest.approx(likely, abs=1e-3)
        assert found.greedy == greedy


def test_padding_changes_no_angle(tmp_path: Path) -> None:
    """Beyond 16 tokens, this model has other angles: rows of 15 are not padded to 17."""
    model = families.random_model("phi3-long")
    stream = stream_of(model, tmp_path / "model")
    requests = requests_of([(15, 3), (14, 2), (13, 2)], 512)
    for found, request in zip(score(stream, requests, tmp_path), requests, strict=True):
        assert found.log_likelihood == pytest.approx(expected(model, request)[0], abs=1e-4)


def test_what_greedy_decoding_would_write_is_greedy(tmp_path: Path) -> None:
    model = random_llama()
    stream = stream_of(model, tmp_path / "model")
    (given,) = [request.given for request in requests_of([(5, 1)])]
    written: tuple[int, ...] = ()
    for _ in range(3):
        tokens = np.array([[*given, *written]], dtype=np.int32)
        written = (*written, int(reference_logits(model, tokens)[0, -1].argmax()))
    other = (*written[:2], (written[2] + 1) % VOCABULARY)
    found = score(stream, [Continuation(given, written), Continuation(given, other)], tmp_path)
    assert [each.greedy for each in found] == [True, False]


def test_weights_are_read_once_for_all_requests(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    reads = CountedSource(stream.source)
    counted = replace(stream, source=reads, tiles=Tiles(micro_batch_tokens=16))
    score(counted, requests_of([(5, 2)] * 40), tmp_path)
    layers = {name: count for name, count in reads.counts.items() if ".layers." in name}
    assert set(layers.values()) == {1}
    assert len(layers) == 9 * stream.config.layers


def test_more_than_scratch_holds_is_read_once_for_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")
    requests = requests_of(LENGTHS * 3)
    wanted = score(stream, requests, tmp_path)
    reads = CountedSource(stream.source)
    # Room for 50 tokens; the inputs have 65 different ones times three.
    monkeypatch.setattr(scoring, "batch_tokens", lambda width: 50)
    found = score(replace(stream, source=reads), requests, tmp_path)
    tokens = sum(len(row) for row in {request.input for request in requests})
    batches = {count for name, count in reads.counts.items() if ".layers." in name}
    assert len(batches) == 1
    assert tokens / 50 <= batches.pop() <= tokens / 25
    for one, other in zip(wanted, found, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)
        assert one.greedy == other.greedy


def test_equal_inputs_are_run_once(tmp_path: Path) -> None:
    """Choices of one token after the same question."""
    stream = stream_of(random_llama(), tmp_path / "model")
    given = (1, 2, 3, 4)
    choices = [Continuation(given, (token,)) for token in range(VOCABULARY)]
    rows = scoring._rows(choices)
    assert [row.tokens for row in rows] == [given]
    found = score(stream, choices, tmp_path)
    assert sum(np.exp(each.log_likelihood) for each in found) == pytest.approx(1.0, abs=1e-5)
    assert sum(each.greedy for each in found) == 1


def test_it_stops_at_safe_points(tmp_path: Path) -> None:
    stream = stream_of(random_llama(), tmp_path / "model")

    def stop() -> None:
        raise Stopped("now")

    with pytest.raises(Stopped):
        score(stream, requests_of(LENGTHS), tmp_path, stop)


def test_no_requests_have_no_scores(tmp_path: Path) -> None:
    assert score(stream_of(random_llama(), tmp_path / "model"), [], tmp_path) == []
