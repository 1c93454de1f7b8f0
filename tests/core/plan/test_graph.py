from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strucprune_core.plan.graph import (
    PROBE_GROUP_LAYERS,
    Unit,
    ancestors,
    build_graph,
    must_be_finished,
    pending,
    probe_groups,
    publication,
)
from strucprune_core.plan.search import searched, try_units
from strucprune_core.spec import Energy


def held(layers: int, shards: int) -> list[range]:
    """Layers in each file of a checkpoint."""
    return [range(n * layers // shards, (n + 1) * layers // shards) for n in range(shards)]


def graph(
    layers: int = 3,
    shards: int = 2,
    *,
    energy: Energy = "kl_probe",
    evaluate: bool = True,
    rounds: int = 1,
    recover: bool = False,
    distill_steps: int = 0,
) -> list[Unit]:
    return build_graph(
        layers=layers,
        shards=held(layers, shards),
        energy=energy,
        evaluate=evaluate,
        rounds=rounds,
        recover=recover,
        distill_steps=distill_steps,
    )


def exporting() -> list[Unit]:
    return build_graph(
        layers=3,
        shards=[[0, 1, 2]],
        energy="kl_probe",
        evaluate=True,
        exports=("gguf", "gguf_q8_0", "fp8", "block_configs"),
        export_shards={"fp8": [[0], [1, 2]], "block_configs": [[], [0, 1], [2]]},
    )


def names(units: list[Unit]) -> list[str]:
    return [unit.name for unit in units]


def all_files(units: list[Unit]) -> set[tuple[str, str]]:
    return {read for unit in units for read in unit.reads}


def after_running(units: list[Unit]) -> tuple[set[str], set[tuple[str, str]]]:
    """What is finished and present once all units have run and released what they may."""
    released = {file for unit in units for file in unit.releases}
    return set(names(units)), all_files(units) - released


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("energy", get_args(Energy))
@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize(("layers", "shards"), [(1, 1), (3, 2), (20, 5)])
def test_the_graph_is_in_order_and_closed(
    layers: int, shards: int, evaluate: bool, energy: Energy, rounds: int
) -> None:
    units = graph(layers, shards, energy=energy, evaluate=evaluate, rounds=rounds)
    assert len(set(names(units))) == len(units)
    seen: set[str] = set()
    for unit in units:
        assert set(unit.after) <= seen
        assert {owner for owner, _ in unit.reads} <= seen
        seen.add(unit.name)
    assert units[-1].name == "report"
    assert ("evaluate.pruned" in seen) == evaluate
    assert ("probe.0" in seen) == (energy == "kl_probe")
    assert ("gradient.0" in seen) == (energy == "gradient")
    assert {f"price.{number}" in seen for number in range(1, rounds + 1)} == {True}
    assert ("trial.1.0" in seen) == (rounds > 1)
    # A round is reviewed only if there is another one.
    assert (f"review.{rounds - 1}.0" in seen) == (rounds > 1)
    assert f"review.{rounds}.0" not in seen


def test_exports_are_written_once_solved_and_checked_before_the_report() -> None:
    units = {unit.name: unit for unit in exporting()}
    assert list(units)[-1] == "report"
    assert units["gguf"].after == ("allocate", "solve.0", "solve.1", "solve.2")
    assert units["block_configs.0"].after == ("allocate",)
    assert units["block_configs.1"].after == ("allocate", "solve.0", "solve.1")
    assert {"check.gguf", "check.block_configs"} <= set(units["report"].after)
    shards = {(f"block_configs.{shard}", "shard.safetensors") for shard in range(3)}
    assert shards <= set(units["check.block_configs"].reads)
    assert {*shards, ("gguf", "model.gguf")} <= set(publication(list(units.values())).reads)
    seen: set[str] = set()
    for unit in units.values():
        assert {*unit.after, *(owner for owner, _ in unit.reads)} <= seen
        seen.add(unit.name)


def test_exports_in_fewer_bits_are_made_of_an_accepted_result_and_measured() -> None:
    units = {unit.name: unit for unit in exporting()}
    for name in ("gguf_q8_0", "fp8.0", "fp8.1"):
        assert {"evaluate.pruned", "verify"} <= set(units[name].after)
    assert "solve.2" not in units["fp8.0"].after
    assert "solve.2" in units["fp8.1"].after
    judges = {f"{kind}.{each}" for kind in ("check", "evaluate") for each in ("gguf_q8_0", "fp8")}
    assert judges <= set(units["report"].after)
    assert "evaluate.gguf" not in units
    shards = {(f"fp8.{shard}", "shard.safetensors") for shard in range(2)}
    for judge in ("check.fp8", "evaluate.fp8"):
        assert shards <= set(units[judge].reads)
    assert shards <= set(publication(list(units.values())).reads)


@pytest.mark.parametrize(
    ("options", "tail"),
    [
        ({}, "allocate assemble.0 solve.0 solve.1 assemble.1 solve.2 assemble.2"),
        (
            {"recover": True},
            "allocate assemble.0 solve.0 solve.1 solve.2 "
            "replay recover.0 recover.1 assemble.1 recover.2 assemble.2",
        ),
        (
            {"distill_steps": 20},
            "allocate assemble.0 solve.0 solve.1 solve.2 distill.0 distill.1 assemble.1 assemble.2",
        ),
    ],
    ids=["solved", "recovered", "distilled"],
)
def test_a_file_is_written_as_soon_as_its_layers_are_done(
    options: dict[str, Any], tail: str
) -> None:
    shards = [[], [0, 1], [2]]
    units = build_graph(layers=3, shards=shards, energy="forward", evaluate=True, **options)
    order = names(units)
    assert order[order.index("allocate") :] == [
        *tail.split(),
        "evaluate.pruned",
        "verify",
        "report",
    ]


@pytest.mark.parametrize(("recover", "distill"), [(True, 0), (False, 20), (True, 20)])
def test_solutions_that_were_trained_on_are_not_kept(recover: bool, distill: int) -> None:
    _, left = after_running(graph(recover=recover, distill_steps=distill))
    last = {name.partition(".")[0] for name, file in left if "solution" in file}
    assert last == ({"recover"} if not distill else set())


@pytest.mark.parametrize(("recover", "distill"), [(False, 0), (True, 0), (False, 20), (True, 20)])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("energy", get_args(Energy))
@pytest.mark.parametrize("layers", [1, 3, 20])
def test_nothing_is_released_before_its_last_reader(
    layers: int, energy: Energy, rounds: int, recover: bool, distill: int
) -> None:
    units = graph(layers, energy=energy, rounds=rounds, recover=recover, distill_steps=distill)
    gone: set[tuple[str, str]] = set()
    for unit in units:
        assert not set(unit.reads) & gone
        gone |= set(unit.releases)


def test_hidden_states_and_grams_do_not_pile_up() -> None:
    passing = ("hidden.npy", "hidden.0-1.npy", "grams.safetensors", "gradient.npy", "stream.npy")
    for energy in get_args(Energy):
        _, left = after_running(graph(20, energy=energy, rounds=2))
        assert not {(owner, name) for owner, name in left if name in passing}
        assert not {owner for owner, _ in left if owner.startswith("trial")}


def test_gradients_go_from_the_last_layer_to_the_first() -> None:
    order = [unit for unit in graph(20, energy="gradient") if unit.kind == "gradient"]
    assert names(order) == ["gradient.2", "gradient.1", "gradient.0"]
    assert ("gradient.2", "gradient.npy") in order[1].reads
    assert ("tokens", "calibration.npy") in order[0].reads


@pytest.mark.parametrize("layers", [1, 7, 8, 9, 30])
def test_probe_groups_cover_every_layer_once(layers: int) -> None:
    groups = probe_groups(layers)
    assert [layer for group in groups for layer in group] == list(range(layers))
    assert max(map(len, groups)) <= PROBE_GROUP_LAYERS


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [
        ("capture.17", "capture", 17),
        ("tokens", "tokens", -1),
        ("evaluate.dense", "evaluate", -1),
        ("price.2", "price", 2),
    ],
)
def test_kind_and_index(name: str, kind: str, index: int) -> None:
    unit = next(unit for unit in graph(20, rounds=2) if unit.name == name)
    assert (unit.kind, unit.index) == (kind, index)


@pytest.mark.parametrize(("name", "number", "index"), [("trial.2.17", 2, 17), ("review.1.2", 1, 2)])
def test_round_and_index(name: str, number: int, index: int) -> None:
    unit = next(unit for unit in graph(20, rounds=2) if unit.name == name)
    assert (unit.round, unit.index) == (number, index)


def test_a_layer_may_begin_before_the_one_below_is_finished_and_nothing_else_may() -> None:
    units = graph(3)
    follows = {unit.name: unit.follows for unit in units if unit.follows}
    assert follows == {"capture.1": ("capture.0",), "capture.2": ("capture.1",)}
    first, before = must_be_finished(units), ancestors(units)
    assert first["capture.2"] == first["capture.0"] == before["capture.0"]
    assert {"embed", "weights"} <= first["capture.0"]
    for unit in units:
        assert first[unit.name] <= before[unit.name]
        if unit.kind != "capture":
            assert first[unit.name] == before[unit.name]


def test_everything_is_pending_at_first() -> None:
    units = graph()
    assert pending(units, set(), set()) == units


def test_nothing_is_pending_at_last() -> None:
    units = graph()
    assert pending(units, *after_running(units)) == []


@given(
    done=st.integers(0, 120),
    layers=st.integers(1, 12),
    energy=st.sampled_from(get_args(Energy)),
    rounds=st.integers(1, 3),
)
def test_after_an_interruption_only_the_rest_is_pending(
    done: int, layers: int, energy: Energy, rounds: int
) -> None:
    units = graph(layers, energy=energy, rounds=rounds)
    done = min(done, len(units))
    finished, present = after_running(units[:done])
    present |= all_files(units) & {
        (owner, name) for owner, name in all_files(units) if owner in finished
    } - {file for unit in units[:done] for file in unit.releases}
    assert pending(units, finished, present) == units[done:]


def test_a_released_file_is_recomputed_only_where_it_is_needed() -> None:
    units = graph(layers=3)
    finished, present = after_running(units)
    # capture.1 got lost: its input was released, and so was the input of that.
    todo = names(pending(units, finished - {"capture.1"}, present))
    assert todo == ["embed", "capture.0", "capture.1"]


def test_a_lost_solve_needs_the_statistics_again() -> None:
    units = graph(layers=3)
    finished, present = after_running(units)
    todo = names(pending(units, finished - {"solve.0"}, present))
    assert todo == ["embed", "capture.0", "solve.0"]


def test_a_lost_file_of_a_finished_unit_matters_only_to_pending_readers() -> None:
    units = graph()
    finished, present = after_running(units)
    present.remove(("solve.1", "solution.safetensors"))
    assert pending(units, finished, present) == []
    todo = names(pending(units, finished - {"assemble.1"}, present))
    assert todo == ["embed", "capture.0", "capture.1", "solve.1", "assemble.1"]


@given(
    data=st.data(),
    layers=st.integers(1, 10),
    energy=st.sampled_from(get_args(Energy)),
    rounds=st.integers(1, 2),
)
def test_whatever_is_lost_what_is_pending_can_run(
    data: st.DataObject, layers: int, energy: Energy, rounds: int
) -> None:
    units = graph(layers, energy=energy, rounds=rounds)
    finished = data.draw(st.sets(st.sampled_from(names(units))))
    owned = sorted(file for file in all_files(units) if file[0] in finished)
    present = data.draw(st.sets(st.sampled_from(owned))) if owned else set()
    todo = pending(units, finished, present)
    available = set(present)
    done = finished - set(names(todo))
    for unit in todo:
        assert set(unit.after) <= done
        assert set(unit.reads) <= available
        done.add(unit.name)
        available |= {file for file in all_files(units) if file[0] == unit.name}
        available -= set(unit.releases)
    assert done == set(names(units))


@pytest.mark.parametrize(("recover", "distill"), [(False, 0), (True, 0), (False, 12)])
@pytest.mark.parametrize("tries", [1, 3])
def test_tries_come_one_after_another_and_before_the_result(
    tries: int, recover: bool, distill: int
) -> None:
    one = graph(recover=recover, distill_steps=distill)
    units = searched(one, tries)
    done: set[str] = set()
    gone: set[tuple[str, str]] = set()
    for unit in units:
        assert {*unit.after, *(file.unit for file in unit.reads)} <= done
        assert not set(unit.reads) & gone
        done.add(unit.name)
        gone |= set(unit.releases)
    before = ancestors(units)
    assert f"search.{tries + 1}" in before["allocate"]
    for number in range(1, tries + 1):
        measured = f"evaluate.pruned@try{number}"
        assert f"search.{number}" in before[f"price.1@try{number}"]
        assert measured in before[f"search.{number + 1}"]
    assert {unit.name for unit in one} <= done
    tried = [name for name in done if name.endswith("@try1")]
    assert len(tried) == len(try_units(one))
    kept = {owner for owner, _ in all_files(units) - gone}
    assert not [owner for owner in kept if "@try" in owner]
