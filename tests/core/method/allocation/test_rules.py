"""What every allocation rule promises, under every kind of limit that a job may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.budget import parameters_to_remove
from strucprune_core.method.allocation.softmax import sparsities
from strucprune_core.models.families import parse_config
from strucprune_core.plan.sites import PlannedSite, allocate_widths, plan_sites
from strucprune_core.spec import PruningSpec
from tests.core.method.allocation.problems import convex_curves, is_nearest

LAYERS = 5
RULES = ("threshold", "softmax", "uniform")
LIMITS: list[dict[str, Any]] = [
    {},
    {"multiple_of": 16},
    {"min_keep_fraction": 0.02, "max_layer_sparsity": 0.95},
    {"min_keep_fraction": 0.02, "max_sparsity_by_layer": {1: 0.92, 3: 0.95}},
    {
        "min_keep_fraction": 0.02,
        "multiple_of": 8,
        "max_layer_sparsity": 0.95,
        "max_sparsity_by_layer": {0: 0.92},
    },
    {"structures": ["ffn_channels", "kv_groups"], "multiple_of": 8},
    {"structures": ["ffn_channels", "query_heads"], "max_sparsity_by_layer": {2: 0.92}},
]
CONFIG = parse_config(
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 320,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 100,
        "num_key_value_heads": 10,
        "head_dim": 4,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
)


@dataclass(frozen=True)
class Problem:
    """Sites with curves and energies of their own."""

    pruning: PruningSpec
    planned: list[PlannedSite]
    damages: list[NDArray[np.float64]]
    energies: list[float]

    @property
    def widths(self) -> tuple[int, ...]:
        return allocate_widths(self.pruning, self.planned, self.damages, self.energies).widths

    @property
    def removed(self) -> int:
        """Parameters that go."""
        return sum(
            (place.site.structures - width) * place.site.parameters
            for place, width in zip(self.planned, self.widths, strict=True)
        )

    @property
    def budget(self) -> int:
        return parameters_to_remove(
            self.pruning.asked_sparsity,
            [place.site.structures for place in self.planned],
            [place.site.parameters for place in self.planned],
        )

    @property
    def largest_step(self) -> int:
        """Parameters of the largest single step of any site."""
        return max(place.rule.multiple_of * place.site.parameters for place in self.planned)

    def at(self, sparsity: float) -> Problem:
        pruning = self.pruning.model_copy(update={"sparsity": sparsity})
        return Problem(pruning, self.planned, self.damages, self.energies)

    def reordered(self, order: list[int]) -> Problem:
        return Problem(
            self.pruning,
            [self.planned[i] for i in order],
            [self.damages[i] for i in order],
            [self.energies[i] for i in order],
        )


def problem(rule: str, limits: dict[str, Any], sparsity: float, seed: int) -> Problem:
    pruning = PruningSpec.model_validate({"allocation": rule, "sparsity": sparsity, **limits})
    planned = plan_sites(CONFIG, pruning)
    widths = [place.site.structures for place in planned]
    energies = np.random.default_rng(seed).lognormal(0, 1, size=len(planned)).tolist()
    return Problem(pruning, planned, convex_curves(widths, seed), energies)


drawn = given(
    rule=st.sampled_from(RULES),
    limits=st.sampled_from(LIMITS),
    sparsity=st.floats(0.01, 0.9),
    seed=st.integers(0, 10**6),
)


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_reaches_every_budget_under_every_limit(
    rule: str, limits: dict[str, Any], sparsity: float
) -> None:
    check(problem(rule, limits, sparsity, seed=1))


@settings(max_examples=60, deadline=None)
@drawn
def test_the_budget_is_met_to_within_one_step(
    rule: str, limits: dict[str, Any], sparsity: float, seed: int
) -> None:
    check(problem(rule, limits, sparsity, seed))


def rounds_to_nothing(found: Problem) -> bool:
    """Whether it is refused since at every site less than half a step is asked for."""
    try:
        _ = found.widths
    except InvalidSpec:
        share = found.pruning.asked_sparsity
        assert all(
            share * place.site.structures <= place.rule.multiple_of / 2 for place in found.planned
        )
        return True
    return False


def check(found: Problem) -> None:
    """The budget is met to within one rounding step (uniform: a site), and no limit broken."""
    uniform = found.pruning.allocation == "uniform"
    if uniform and rounds_to_nothing(found):
        return
    steps = len(found.planned) if uniform else 1
    assert is_nearest(found.removed, found.budget, steps * found.largest_step)
    for place, width in zip(found.planned, found.widths, strict=True):
        assert width in place.rule.widths(place.site.structures)
        most = min(
            found.pruning.max_layer_sparsity,
            found.pruning.max_sparsity_by_layer.get(place.layer, 1.0),
        )
        # A part of a structure does not count against a limit.
        assert place.site.structures - width < most * place.site.structures + 1
        if place.site.kind == "ffn" and width < place.site.structures:
            assert width % found.pruning.multiple_of == 0


@settings(max_examples=60, deadline=None)
@drawn
def test_more_sparsity_removes_more(
    rule: str, limits: dict[str, Any], sparsity: float, seed: int
) -> None:
    more = problem(rule, limits, sparsity, seed)
    less = more.at(sparsity * float(np.random.default_rng(seed).uniform(0.01, 1.0)))
    if rule == "uniform" and (rounds_to_nothing(less) or rounds_to_nothing(more)):
        return
    if rule == "softmax":  # Its energies depend on the sparsity: only the whole is ordered.
        assert less.removed < more.removed + more.largest_step
        return
    assert all(a >= b for a, b in zip(less.widths, more.widths, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.05, 20.0),
    sparsity=st.floats(0.01, 0.8),
    share=st.floats(0.01, 1.0),
)
def test_the_softmax_itself_is_monotone_in_sparsity(
    seed: int, temperature: float, sparsity: float, share: float
) -> None:
    draw = np.random.default_rng(seed)
    levels, shares = draw.normal(0, 2, size=6), draw.uniform(0.1, 1.0, size=6)
    shares /= shares.sum()
    highest = draw.uniform(0.8, 1.0, size=6)
    more, less = (
        sparsities(levels, temperature, highest, shares, s) for s in (sparsity, sparsity * share)
    )
    assert (less <= more + 1e-12).all()


@settings(max_examples=60, deadline=None)
@drawn
@example(
    rule="softmax", limits=LIMITS[-1], sparsity=0.01, seed=78
)  # At low temperatures, steps of several sites tie.
def test_sites_may_come_in_any_order(
    rule: str, limits: dict[str, Any], sparsity: float, seed: int
) -> None:
    found = problem(rule, limits, sparsity, seed)
    if rule == "uniform" and rounds_to_nothing(found):
        return
    order = np.random.default_rng(seed + 1).permutation(len(found.planned)).tolist()
    assert found.reordered(order).widths == tuple(found.widths[i] for i in order)


@pytest.mark.parametrize("rule", ["threshold", "softmax"])
@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5])
def test_layers_left_alone_stay_whole(rule: str, sparsity: float) -> None:
    limits = {"max_sparsity_by_layer": {0: 0.0, 4: 0.0}}
    found = problem(rule, limits, sparsity, seed=2)
    check(found)
    assert (found.widths[0], found.widths[4]) == (320, 320)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "limits", [{"max_layer_sparsity": 0.4}, {"max_sparsity_by_layer": dict.fromkeys(range(5), 0.4)}]
)
def test_what_the_limits_forbid_is_refused(rule: str, limits: dict[str, Any]) -> None:
    assert problem(rule, limits, 0.4, seed=3).widths == (192,) * LAYERS
    with pytest.raises(InvalidSpec, match="out of reach") as caught:
        _ = problem(rule, limits, 0.41, seed=3).widths
    assert caught.value.field == "pruning.sparsity"
