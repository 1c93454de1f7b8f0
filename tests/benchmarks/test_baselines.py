"""The baselines against their papers' formulas, computed by loops over single numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import rival_methods, rival_runs
from benchmarks.baselines import (
    block_influence,
    flap,
    least_squares,
    magnitude,
    random_choice,
    taylor,
    wanda_sp,
)
from benchmarks.baselines.selection import keep_globally, uniform_quota
from benchmarks.baselines.sites import Scope, Site, model_sites, site_parameters
from benchmarks.baselines.statistics import Gram, Moments, embedded, run_layer
from strucprune_core.evaluation.standalone import evaluate_model
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -0.5]])  # d = 2, m = 3
INPUTS = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 4.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 5.0]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rivals") / "model"
    return make_tiny_llama(directory, layers=2, hidden=16, intermediate=12, heads=4, kv_heads=2)


@pytest.fixture
def model(checkpoint: Path) -> Any:
    return rival_runs.load_whole(checkpoint)


@pytest.fixture
def windows() -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(0, 512, (3, 16), dtype=np.int32)


def ffn_site(structures: int, layer: int = 0, d: int = 2) -> Site:
    gate, up = (nn.Linear(d, structures, bias=False) for _ in range(2))
    return Site(layer, "ffn", (gate, up), nn.Linear(structures, d, bias=False), structures)


def moments() -> dict[str, Tensor]:
    found = Moments(3)
    for part in (INPUTS[:1], INPUTS[1:]):
        found.add(part, torch.ones(len(part)))
    return found.tensors()


def column(matrix: Tensor, j: int) -> list[float]:
    return [float(row[j]) for row in matrix]


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def test_block_influence_is_one_minus_the_mean_cosine() -> None:
    wanted = 0.0
    leaving = INPUTS.flip(1)
    for x, y in zip(INPUTS.tolist(), leaving.tolist(), strict=True):
        product = sum(a * b for a, b in zip(x, y, strict=True))
        wanted += product / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y)) / 4
    assert block_influence.influence(INPUTS, leaving) == pytest.approx(1 - wanted)


def test_the_layer_that_changes_least_goes(model: Any, windows: NDArray[np.int32]) -> None:
    with torch.no_grad():
        for linear in (model.model.layers[1].mlp.down_proj, model.model.layers[1].self_attn.o_proj):
            linear.weight.zero_()
    found = list(block_influence.influences(model, windows))
    assert found[1] == pytest.approx(0.0, abs=1e-6)
    assert found[0] > 1e-4
    tokens = torch.from_numpy(windows).long()
    before = model(tokens, use_cache=False).logits
    block_influence.prune(model, found, 0.5)
    assert len(model.model.layers) == 1
    assert torch.allclose(model(tokens, use_cache=False).logits, before, atol=1e-6)


def test_magnitude_is_the_norm_of_the_column() -> None:
    wanted = [math.sqrt(sum(w**2 for w in column(WEIGHT, j))) for j in range(3)]
    assert magnitude.scores(WEIGHT).tolist() == pytest.approx(wanted)
    assert wanted[1] == 2.0


def test_wanda_is_the_mean_weight_times_the_inputs_norm() -> None:
    wanted = []
    for j in range(3):
        norm = math.sqrt(sum(x**2 for x in column(INPUTS, j)))
        wanted.append(sum(abs(w) * norm for w in column(WEIGHT, j)) / 2)
    found = wanda_sp.scores(WEIGHT, moments()["sum_squares"])
    assert found.tolist() == pytest.approx(wanted)
    assert wanted[0] == pytest.approx(2 * math.sqrt(12))


@pytest.mark.parametrize("squared", [False, True])
def test_flap_standardises_variance_times_squared_norm(squared: bool) -> None:
    raw = [variance(column(INPUTS, j)) * sum(w**2 for w in column(WEIGHT, j)) for j in range(3)]
    if squared:
        raw = [value**2 for value in raw]
    mean, deviation = sum(raw) / 3, math.sqrt(variance(raw))
    found = flap.standardised(WEIGHT, moments()["variance"], squared=squared)
    assert found.tolist() == pytest.approx([(value - mean) / deviation for value in raw])


def test_flaps_bias_is_the_mean_output_of_what_goes() -> None:
    found = flap.compensation(WEIGHT, moments()["mean"], torch.tensor([1]))
    means = [sum(column(INPUTS, j)) / 4 for j in range(3)]
    wanted = [float(row[0]) * means[0] + float(row[2]) * means[2] for row in WEIGHT]
    assert found.tolist() == pytest.approx(wanted)


def test_the_gram_matrix_is_weighted_by_token() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 0.25])
    found = Gram(3)
    found.add(INPUTS[:3], weights[:3])
    found.add(INPUTS[3:], weights[3:])
    wanted = sum(float(w) * float(x[0]) * float(x[2]) for w, x in zip(weights, INPUTS, strict=True))
    tensors = found.tensors()
    assert float(tensors["gram"][0, 2]) == pytest.approx(wanted / 3.75)
    assert tensors["sum_squares"].tolist() == pytest.approx(moments()["sum_squares"].tolist())


def test_uniform_quotas_add_up_to_the_budget() -> None:
    quotas = [uniform_quota(ffn_site(3, layer), 0.2) for layer in range(5)]
    assert quotas == [1, 1, 0, 1, 0]
    assert sum(uniform_quota(ffn_site(1536, layer), 0.3) for layer in range(30)) == 13824


def test_global_selection_takes_the_lowest_of_all_sites_but_never_all_of_one() -> None:
    sites = [ffn_site(4), ffn_site(4, layer=1)]
    scores = [torch.tensor([5.0, 1.0, 7.0, 3.0]), torch.tensor([0.1, 0.3, 0.4, 0.2])]
    kept = keep_globally(sites, scores, 0.5)
    assert [k.tolist() for k in kept] == [[0, 2, 3], [2]]
    assert [k.tolist() for k in keep_globally(sites, scores, 3 / 8)] == [[0, 1, 2, 3], [2]]


def test_global_selection_counts_weights_not_structures() -> None:
    sites = [ffn_site(2, d=10), ffn_site(5, layer=1, d=2)]  # 30 and 6 weights a structure.
    scores = [torch.tensor([1.0, 9.0]), torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0])]
    kept = keep_globally(sites, scores, 36 / 90)
    assert [k.tolist() for k in kept] == [[1], [1, 2, 3, 4]]


def gradients(model: Any, window: NDArray[np.int32], scale: float = 1.0) -> dict[str, Tensor]:
    """Gradients of the mean next-token loss, from logits and nothing of the baseline's."""
    tokens = torch.from_numpy(window).long()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    log_probabilities = model(tokens[None]).logits[0].log_softmax(-1)
    terms = [-log_probabilities[t, tokens[t + 1]] for t in range(len(tokens) - 1)]
    loss: Any = torch.stack(terms).mean() * scale
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def channel_products(model: Any, grads: dict[str, Tensor], layer: int, j: int) -> list[float]:
    """w dL/dw of every weight of an FFN channel."""
    products = []
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = model.get_parameter(f"model.layers.{layer}.mlp.{name}.weight")
        grad = grads[f"model.layers.{layer}.mlp.{name}.weight"]
        for k in range(16):
            place = (k, j) if name == "down_proj" else (j, k)
            products.append(float(weight[place] * grad[place]))
    return products


def test_taylor_by_sample(model: Any, windows: NDArray[np.int32]) -> None:
    found = taylor.scores(model, model_sites(model, "ffn"), windows, "vector")
    grads = [gradients(model, window, 1 / 3) for window in windows]
    for layer, j in ((0, 0), (0, 11), (1, 5)):
        wanted = sum(abs(sum(channel_products(model, g, layer, j))) for g in grads)
        assert float(found[layer][j]) * 48 == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_taylor_by_weight(model: Any, windows: NDArray[np.int32]) -> None:
    found = taylor.scores(model, model_sites(model, "ffn"), windows, "element")
    each = [gradients(model, window, 1 / 3) for window in windows]
    mean = {name: sum((g[name] for g in each), torch.zeros(())) for name in each[0]}
    for layer, j in ((0, 3), (1, 0)):
        wanted = sum(abs(p) for p in channel_products(model, mean, layer, j))
        assert float(found[layer][j]) * 48 == pytest.approx(wanted, rel=1e-4)


def test_taylor_of_a_channel_is_the_slope_of_its_scale(
    model: Any, windows: NDArray[np.int32]
) -> None:
    """Scaling up and down by s multiplies an FFN channel by s^2; gate's part is left out."""
    site = model_sites(model, "ffn")[0]
    up, down = site.producers[1].weight, site.consumer.weight
    grads = gradients(model, windows[0])
    step, losses = 1e-2, []
    for scale in (1 + step, 1 - step):
        with torch.no_grad():
            kept = up[4].clone(), down[:, 4].clone()
            up[4] *= scale
            down[:, 4] *= scale
            losses.append(math.log(rival_runs.perplexity(model, windows[:1])))
            up[4], down[:, 4] = kept
    slope = (losses[0] - losses[1]) / (2 * step)
    products = channel_products(model, grads, 0, 4)[16:]
    assert sum(products) == pytest.approx(slope, rel=0.02, abs=1e-5)


def test_taylor_of_a_kv_group_covers_its_query_heads(
    model: Any, windows: NDArray[np.int32]
) -> None:
    sites = model_sites(model, "body")
    found = taylor.scores(model, sites, windows[:1], "vector")
    grads = gradients(model, windows[0])
    wanted = 0.0
    for name, rows in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4), ("o_proj", 8)):
        full = f"model.layers.0.self_attn.{name}.weight"
        product = model.get_parameter(full).detach() * grads[full]
        own = product[:, rows:] if name == "o_proj" else product[rows:]
        wanted += float(own.sum())
    assert sites[0].structures == 2
    assert float(found[0][1]) * 16 * 24 == pytest.approx(abs(wanted), rel=1e-4)


def test_least_squares_recovers_what_can_be_recovered() -> None:
    """Input 2 is the sum of inputs 0 and 1, so its column can be shared out without loss."""
    inputs = INPUTS.clone()
    inputs[:, 2] = inputs[:, 0] + inputs[:, 1]
    site = ffn_site(3)
    site.consumer.weight.data = WEIGHT.clone()
    gram = Gram(3)
    gram.add(inputs, torch.ones(4))
    found = gram.tensors()
    kept = torch.tensor([0, 1])
    least_squares.repair([site], [kept], lambda index: found, tokens=10**9)
    # Damping .03 pulls towards the dense weights, so it is near and not exact.
    wanted = torch.stack([WEIGHT[:, 0] + WEIGHT[:, 2], WEIGHT[:, 1] + WEIGHT[:, 2]], dim=1)
    ridge = 0.03 * float(found["gram"].diagonal().mean())
    own = found["gram"][:2, :2].double()
    right = WEIGHT.double() @ found["gram"][:, :2].double() + ridge * WEIGHT[:, :2].double()
    exact = right @ torch.linalg.inv(own + ridge * torch.eye(2).double())
    torch.testing.assert_close(site.consumer.weight.double(), exact, rtol=1e-5, atol=1e-6)
    assert (site.consumer.weight - wanted).abs().max() < 0.1


def test_obs_order_takes_the_redundant_channel_first() -> None:
    site = ffn_site(3)
    site.consumer.weight.data = torch.ones(2, 3)
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    noise[:, 2] = 0.9 * noise[:, 0] + 0.01 * noise[:, 2]  # Nearly a copy of channel 0.
    gram = Gram(3)
    gram.add(noise, torch.ones(200))
    kept = least_squares.choose(site, gram.tensors(), "obs", 1 / 3)
    assert 1 in kept.tolist()
    assert len(kept) == 2


@pytest.mark.parametrize("scope", ["ffn", "body"])
def test_removal_equals_zeroing(model: Any, windows: NDArray[np.int32], scope: Scope) -> None:
    tokens = torch.from_numpy(windows).long()
    sites = model_sites(model, scope)
    kept = [torch.arange(1, site.structures) for site in sites]
    saved = [site.consumer.weight.detach().clone() for site in sites]
    with torch.no_grad():
        for site in sites:
            site.consumer.weight[:, : site.consumer.in_features // site.structures] = 0.0
        zeroed = model(tokens).logits
        for site, weight in zip(sites, saved, strict=True):
            site.consumer.weight.copy_(weight)
        for site, stays in zip(sites, kept, strict=True):
            site.remove_all_but(stays)
        removed = model(tokens).logits
    torch.testing.assert_close(removed, zeroed, rtol=1e-4, atol=1e-5)
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (11, 16)


def test_walking_the_layers_is_the_model(model: Any, windows: NDArray[np.int32]) -> None:
    hidden = embedded(model, windows)
    found = Moments(12)
    for layer in range(2):
        down = model.model.layers[layer].mlp.down_proj
        hidden = run_layer(model, layer, hidden, {down: found} if layer == 1 else {})
    with torch.no_grad():
        wanted = model.model(torch.from_numpy(windows).long()).last_hidden_state
        torch.testing.assert_close(model.model.norm(hidden), wanted, rtol=1e-4, atol=1e-5)
    assert found.tensors()["mean"].abs().sum() > 0


def test_wanda_judges_a_layer_on_what_pruned_layers_feed_it(
    checkpoint: Path, windows: NDArray[np.int32]
) -> None:
    model, by_hand = rival_runs.load_whole(checkpoint), rival_runs.load_whole(checkpoint)
    wanda_sp.prune(model, "ffn", windows, 0.5)
    hidden = embedded(by_hand, windows)
    for layer, site in enumerate(model_sites(by_hand, "ffn")):
        found = Moments(12)
        run_layer(by_hand, layer, hidden, {site.consumer: found})
        scores = wanda_sp.scores(
            site.consumer.weight.detach(), found.tensors()["sum_squares"]
        ).tolist()
        highest = sorted(sorted(range(12), key=lambda j: scores[j])[6:])
        site.remove_all_but(torch.tensor(highest))
        hidden = run_layer(by_hand, layer, hidden, {})
        here, there = model.model.layers[layer].mlp, by_hand.model.layers[layer].mlp
        assert torch.equal(here.up_proj.weight, there.up_proj.weight)


def test_random_is_seeded(checkpoint: Path) -> None:
    def pruned(seed: int) -> Tensor:
        model = rival_runs.load_whole(checkpoint)
        random_choice.prune(model_sites(model, "ffn"), 0.5, seed)
        weight: Tensor = model.model.layers[1].mlp.up_proj.weight
        return weight

    assert torch.equal(pruned(1), pruned(1))
    assert not torch.equal(pruned(1), pruned(2))


def test_shared_perplexity_is_the_streamed_one(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(make_text(), encoding="utf-8")
    setup = prepared(checkpoint, text, tmp_path)
    streamed = evaluate_model(
        str(checkpoint),
        str(text),
        sequences=2,
        sequence_length=64,
        device="cpu",
        micro_batch_tokens=64,
        tick=lambda share: None,
    )
    assert rival_runs.run_dense(setup) == pytest.approx(streamed["perplexity"], rel=1e-4)


@pytest.mark.parametrize("scope", ["ffn", "body"])
@pytest.mark.parametrize("method", rival_methods.METHODS, ids=lambda method: str(method.key))
def test_every_row_runs_and_removes_what_was_asked(
    checkpoint: Path, tmp_path: Path, method: rival_methods.Method, scope: Scope
) -> None:
    if scope == "body" and not method.attention:
        pytest.skip("has no attention path")
    text = tmp_path / "text.txt"
    text.write_text(make_text(), encoding="utf-8")
    setup = prepared(checkpoint, text, tmp_path)
    if isinstance(method, rival_methods.Baseline):
        for stage in method.stages:
            assert rival_runs.run_stage(setup, scope, stage).host_peak_bytes > 0
    share = 0.5 if method.key == "block-influence" else 0.25  # Of two layers, one can go.
    outcome = rival_runs.run_row(setup, scope, method.key, share)
    assert outcome.reached == pytest.approx(share, abs=0.02 if scope == "ffn" else 0.15)
    assert 1.0 < outcome.perplexity < 2000.0
    model = rival_runs.load_whole(checkpoint)
    assert site_parameters(model, "ffn") == 2 * 3 * 12 * 16


def prepared(checkpoint: Path, text: Path, work: Path) -> rival_runs.Setup:
    from benchmarks import rivals

    options = rivals._parse(
        f"--model {checkpoint} --calibration {text} --evaluation {text} --threads 1 --samples 4 "
        "--sequence-length 32 --sequences 2 --evaluation-length 64".split()
    )
    return rivals._prepare(options, work)
