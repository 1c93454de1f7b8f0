"""Which experts stay, and how many can."""

from __future__ import annotations

import pytest

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.experts import removal_damages, stay
from strucprune_core.models.config import Routing
from strucprune_core.models.experts import kept_count, least_kept, with_count


def test_the_highest_scores_stay() -> None:
    assert stay([1.0, 4.0, 3.0, 2.0], [9, 9, 9, 9], 2) == [1, 2]
    assert stay([1.0, 1.0, 1.0, 1.0], [9, 9, 9, 9], 3) == [0, 1, 2]


def test_experts_without_tokens_go_before_all_others() -> None:
    assert stay([0.0, 4.0, 0.0, -1.0], [1, 0, 0, 1], 2) == [0, 3]


def test_every_group_keeps_as_many() -> None:
    assert stay([9.0, 8.0, 7.0, 6.0, 1.0, 4.0, 3.0, 2.0], [1] * 8, 4, 2) == [0, 1, 5, 6]


def test_damages_are_interpolated_and_never_fall() -> None:
    assert removal_damages([(2, 2.0), (4, 8.0)], 5).tolist() == [1.0, 1.0, 3.0, 3.0, 3.0]
    assert removal_damages([(3, 6.0), (1, 4.0)], 4).tolist() == [4.0, 4.0, 4.0, 4.0]


def routing(experts: int = 16, chosen: int = 2, groups: int = 1, chosen_groups: int = 1) -> Routing:
    keys = ("num_experts", "num_local_experts")
    return Routing(keys, experts, chosen, "num_experts_per_tok", groups, chosen_groups)


def count(sparsity: float, of: Routing, multiple_of: int = 1, keep: float = 0.1) -> int:
    return kept_count(
        of, sparsity, multiple_of=multiple_of, min_keep_fraction=keep, max_layer_sparsity=1.0
    )


@pytest.mark.parametrize(
    ("sparsity", "of", "multiple_of", "kept"),
    [
        (0.25, routing(), 1, 12),
        (0.3, routing(), 1, 11),  # 11.2
        (0.03125, routing(), 1, 15),  # half an expert
        (0.3, routing(), 8, 8),
        (0.875, routing(), 1, 2),
        (0.3, routing(groups=4, chosen_groups=2), 1, 12),  # 12 is as near to 11.2 as can be
        (0.5, routing(256, 8, 8, 4), 1, 128),
    ],
)
def test_the_nearest_number_stays(
    sparsity: float, of: Routing, multiple_of: int, kept: int
) -> None:
    assert count(sparsity, of, multiple_of) == kept


def test_tokens_find_as_many_experts_as_before() -> None:
    assert least_kept(routing(chosen=4)) == 4
    # 8 experts of 4 groups: 2 of each group, and so of each of all 8 groups.
    assert least_kept(routing(256, 8, 8, 4)) == 16
    # A router that scores groups by their two best needs two.
    assert least_kept(routing(64, 6, 8, 8)) == 16


@pytest.mark.parametrize(("sparsity", "least"), [(0.01, "0.0313"), (0.02, "0.0313")])
def test_less_than_an_expert_is_refused_with_what_can_be(sparsity: float, least: str) -> None:
    with pytest.raises(InvalidSpec, match="rounds to none") as caught:
        count(sparsity, routing())
    assert caught.value.remedy is not None
    assert least in caught.value.remedy
    assert count(float(least), routing()) == 15


def test_more_than_can_go_is_refused_with_what_can_be() -> None:
    with pytest.raises(InvalidSpec, match="at most 12 of 16 experts") as caught:
        count(0.9, routing(chosen=4))
    assert caught.value.remedy is not None
    assert "0.75" in caught.value.remedy
    assert count(0.75, routing(chosen=4)) == 4


def test_where_all_experts_are_chosen_the_refusal_says_why() -> None:
    with pytest.raises(InvalidSpec, match=r"a token chooses 8 \(num_experts_per_tok\)") as caught:
        count(0.5, routing(8, 8))
    assert caught.value.field == "pruning.structures"
    with pytest.raises(InvalidSpec, match=r"of 8 experts a token chooses 2 .* from 4 of 8 groups"):
        count(0.5, routing(8, 2, 8, 4))


def test_config_json_says_the_number_under_every_key_that_it_has() -> None:
    both = {"num_experts": 16, "num_local_experts": 16, "hidden_size": 8}
    assert with_count(both, routing(), 12) == {**both, "num_experts": 12, "num_local_experts": 12}
    assert with_count({"num_local_experts": 16}, routing(), 12) == {"num_local_experts": 12}
    assert with_count({}, routing(), 12) == {"num_experts": 12}
    inside = {"text_config": {"num_experts": 16}, "vision_config": {"num_experts": 3}}
    assert with_count(inside, routing(), 12) == {
        "text_config": {"num_experts": 12},
        "vision_config": {"num_experts": 3},
    }
