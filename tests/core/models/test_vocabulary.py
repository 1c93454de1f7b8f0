from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from strucprune_core.errors import Stopped
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import (
    Head,
    embed,
    kl_divergences,
    next_token_logits,
    token_losses,
)
from tests.core.models.reference import random_llama, random_tokens, stream_of

VOCABULARY, HIDDEN = 101, 32


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> ModelStream:
    model = random_llama(num_hidden_layers=1, tie_word_embeddings=request.param)
    return stream_of(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(params=[(7, 5), (100, 64), (101, 1), (4096, 2048)], ids=str)
def tiles(request: pytest.FixtureRequest) -> Tiles:
    vocabulary_rows, head_tokens = request.param
    return Tiles(vocabulary_rows=vocabulary_rows, head_tokens=head_tokens)


@pytest.fixture
def stream(whole: ModelStream, tiles: Tiles) -> ModelStream:
    return replace(whole, tiles=tiles)


def states(count: int, seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((count, HIDDEN))).astype(np.float32)


def full_logits(stream: ModelStream, hidden: NDArray[np.float32]) -> Tensor:
    """All logits at once, in float64."""
    config, names = stream.config, stream.config.names
    x = torch.from_numpy(hidden).double()
    norm = stream.source.tensor(f"{names.final_norm}.weight", dtype=torch.float64)
    x = norm * x / (x.square().mean(-1, keepdim=True) + config.norm.eps).sqrt()
    return x @ stream.source.tensor(config.head_matrix, dtype=torch.float64).T


def test_embed_is_a_table_lookup(stream: ModelStream) -> None:
    tokens = random_tokens(4, 30)
    tokens[0, :2] = 0, VOCABULARY - 1
    out = np.full((4, 30, HIDDEN), np.nan, dtype=np.float32)
    embed(stream, tokens, out)
    table = stream.source.tensor(stream.config.names.embedding).numpy()
    assert np.array_equal(out, table[tokens])


def test_logits(stream: ModelStream) -> None:
    hidden = states(6, 0)
    torch.testing.assert_close(
        next_token_logits(stream, hidden).double(),
        full_logits(stream, hidden),
        rtol=1e-5,
        atol=1e-5,
    )


def test_token_losses_are_cross_entropies(stream: ModelStream) -> None:
    hidden, targets = states(23, 1), random_tokens(1, 23)[0]
    targets[:2] = 0, VOCABULARY - 1
    expected = functional.cross_entropy(
        full_logits(stream, hidden), torch.from_numpy(targets.astype(np.int64)), reduction="none"
    )
    found = token_losses(stream, hidden, targets)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_token_losses_survive_huge_logits(
    stream: ModelStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, targets = states(9, 2), random_tokens(1, 9)[0]
    plain = Head.logits
    monkeypatch.setattr(Head, "logits", lambda *args: 1e4 * plain(*args))
    expected = functional.cross_entropy(
        1e4 * full_logits(stream, hidden),
        torch.from_numpy(targets.astype(np.int64)),
        reduction="none",
    )
    np.testing.assert_allclose(
        token_losses(stream, hidden, targets), expected.numpy(), rtol=1e-4, atol=0.2
    )


def test_kl_divergences_are_those_of_torch(stream: ModelStream) -> None:
    reference = states(17, 3)
    others = [states(17, 4), reference + states(17, 5, 0.05), reference.copy()]
    found = kl_divergences(stream, reference, others)
    p = full_logits(stream, reference).log_softmax(-1)
    for kl, other in zip(found, others, strict=True):
        q = full_logits(stream, other).log_softmax(-1)
        expected = functional.kl_div(q, p, reduction="batchmean", log_target=True)
        assert kl == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert abs(found[-1]) < 1e-12  # a model does not differ from itself


def test_no_others_no_divergences(stream: ModelStream) -> None:
    assert kl_divergences(stream, states(3, 0), []) == []


def test_arguments_are_left_alone(stream: ModelStream) -> None:
    reference, other = states(5, 6), states(5, 7)
    copies = reference.copy(), other.copy()
    kl_divergences(stream, reference, [other])
    token_losses(stream, other, random_tokens(1, 5)[0])
    assert np.array_equal(reference, copies[0])
    assert np.array_equal(other, copies[1])


def test_every_tile_is_a_safe_point_to_stop(stream: ModelStream) -> None:
    tiles = -(-VOCABULARY // stream.tiles.vocabulary_rows)
    ticks: list[int] = []
    token_losses(stream, states(3, 0), random_tokens(1, 3)[0], lambda: ticks.append(1))
    kl_divergences(stream, states(3, 0), [states(3, 1)], lambda: ticks.append(1))
    assert len(ticks) == 2 * tiles

    def stop() -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped):
        token_losses(stream, states(3, 0), random_tokens(1, 3)[0], stop)


def test_memory_mapped_states_do(stream: ModelStream, tmp_path: Path) -> None:
    hidden, targets = states(5, 8), random_tokens(1, 5)[0]
    np.save(tmp_path / "hidden.npy", hidden)
    mapped = np.load(tmp_path / "hidden.npy", mmap_mode="r")
    found = token_losses(stream, mapped, targets)
    np.testing.assert_array_equal(found, token_losses(stream, hidden, targets))
