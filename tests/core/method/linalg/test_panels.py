"""The solver by panels, in memory and out of it: the same answers as the plain algorithms."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from strucprune_core.errors import NumericalFailure, ScratchUnavailable, Stopped
from strucprune_core.method.layer.damage_curve import damage_curve
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.method.layer.ridge import (
    relative_error,
    relative_error_by_panels,
    ridge,
    ridge_into,
)
from strucprune_core.method.linalg.factorisation import factorise_into
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, Room
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.method.linalg.symmetric import invert
from strucprune_core.scratch.mapped_matrix import HostMatrix, ScratchMatrices
from tests.core.method.exact import random_gram, random_weight
from tests.core.method.plain import plain_curve, plain_group_curve

CPU = torch.device("cpu")
PANELS = [Panels(), Panels(superblock=16), Panels(7, 16), Panels(16, 32), Panels(33, 48)]


def room(directory: Path, panels: Panels) -> Room:
    return Room(CPU, panels, ScratchMatrices(directory, CPU))


def filling(matrix: Tensor) -> Callable[[slice, Tensor], None]:
    def fill(span: slice, out: Tensor) -> None:
        out.copy_(matrix[span, : span.stop])

    return fill


def stored(tensor: Tensor, panels: Panels) -> Matrix:
    """On the device if it fits a panel, else in a host matrix."""
    if panels.fits(tensor.shape[1]):
        return DeviceMatrix(tensor)
    return HostMatrix(tensor.numpy().copy(), CPU)


@pytest.mark.parametrize("panels", PANELS, ids=str)
@pytest.mark.parametrize(("channels", "rows"), [(90, 20), (160, 200), (5, 3)])
def test_curves_equal_the_plain_ones(
    tmp_path: Path, panels: Panels, channels: int, rows: int
) -> None:
    gram, weight = random_gram(channels, 3), random_weight(rows, channels, 3)
    found = damage_curve(stored(gram, panels), stored(weight, panels), 16, room(tmp_path, panels))
    order, damage = plain_curve(gram, weight, 16)
    assert torch.equal(found.order, order)
    torch.testing.assert_close(found.damage, damage, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("panels", PANELS, ids=str)
def test_dead_and_repeated_channels(tmp_path: Path, panels: Panels) -> None:
    gram, weight = random_gram(70, 4), random_weight(12, 70, 4)
    dead, twin = [3, 41, 42], (10, 55)
    gram[dead] = 0.0
    gram[:, dead] = 0.0
    gram[twin[1]] = gram[twin[0]]
    gram[:, twin[1]] = gram[:, twin[0]]
    found = damage_curve(stored(gram, panels), stored(weight, panels), 4, room(tmp_path, panels))
    order, damage = plain_curve(gram, weight, 4)
    assert found.order[:3].tolist() == dead
    assert torch.equal(found.order, order)
    torch.testing.assert_close(found.damage, damage, rtol=1e-7, atol=1e-9)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    channels=st.integers(1, 50),
    rows=st.integers(1, 60),
    block=st.integers(1, 20),
    panel=st.integers(1, 60),
    superblock=st.integers(1, 60),
)
def test_any_sizes_of_pieces(
    tmp_path: Path, seed: int, channels: int, rows: int, block: int, panel: int, superblock: int
) -> None:
    panels = Panels(panel, superblock)
    gram, weight = random_gram(channels, seed), random_weight(rows, channels, seed)
    found = damage_curve(
        stored(gram, panels), stored(weight, panels), block, room(tmp_path, panels)
    )
    order, damage = plain_curve(gram, weight, block)
    assert torch.equal(found.order, order)
    torch.testing.assert_close(found.damage, damage, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("panels", PANELS, ids=str)
@pytest.mark.parametrize(("columns", "lockstep"), [(4, 1), (8, 3), (6, 4), (24, 1)])
def test_group_curves_equal_the_plain_ones(
    tmp_path: Path, panels: Panels, columns: int, lockstep: int
) -> None:
    gram, weight = random_gram(48, 5), random_weight(30, 48, 5)
    if 48 // columns % lockstep:
        pytest.skip("not whole families")
    found = group_damage_curve(
        stored(gram, panels), stored(weight, panels), columns, lockstep, room(tmp_path, panels)
    )
    order, damage = plain_group_curve(gram, weight, columns, lockstep)
    assert torch.equal(found.order, order)
    torch.testing.assert_close(found.damage, damage, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("panel", [1, 9, 32, 50, 100])
def test_inverse_and_factor(tmp_path: Path, panel: int) -> None:
    matrix = random_gram(50, 6)
    place = room(tmp_path, Panels(panel))
    lower = place.matrix(50, 50)
    assert factorise_into(lower, filling(matrix), place)
    torch.testing.assert_close(lower.tensor.tril(), torch.linalg.cholesky(matrix))
    held = place.matrix(50, 50)
    held.write(slice(0, 50), slice(0, 50), matrix.tril())
    assert invert(held, place)
    torch.testing.assert_close(held.tensor, torch.linalg.inv(matrix), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("panel", [3, 8, 100])
@pytest.mark.parametrize("bad", [0, 5, 19])
def test_what_is_not_positive_definite_is_noticed(tmp_path: Path, panel: int, bad: int) -> None:
    matrix = random_gram(20, 7)
    matrix[bad, bad] = -1.0
    place = room(tmp_path, Panels(panel))
    lower = place.matrix(20, 20)
    assert not factorise_into(lower, filling(matrix), place)
    lower.write(slice(0, 20), slice(0, 20), matrix)
    assert not invert(lower, place)


def test_retries_out_of_memory(tmp_path: Path) -> None:
    gram, weight = torch.eye(24, dtype=torch.float64), random_weight(3, 24, 0)
    gram[0, 1] = gram[1, 0] = 1.05
    panels = Panels(5)
    place, left = room(tmp_path, panels), stored(weight, panels)
    assert damage_curve(stored(gram, panels), left, room=place).retries == 1
    solution, kept = place.matrix(3, 20), torch.arange(20)
    went = ridge_into(stored(gram, panels), left, kept, 0.01, solution, place)
    assert went.damping == pytest.approx(0.1)
    assert went.retries == 1
    torch.testing.assert_close(solution.tensor, ridge(gram, weight, kept, 0.1).weight)


@pytest.mark.parametrize("panels", [Panels(7), Panels(16), Panels(39)], ids=str)
@pytest.mark.parametrize(("channels", "rows", "kept"), [(40, 25, 30), (41, 3, 41), (60, 50, 2)])
def test_the_ridge_by_panels(
    tmp_path: Path, panels: Panels, channels: int, rows: int, kept: int
) -> None:
    gram, weight = random_gram(channels, 8).float(), random_weight(rows, channels, 8).float()
    draw = torch.Generator().manual_seed(8)
    columns = torch.randperm(channels, generator=draw)[:kept].sort().values
    g = 0.3 * gram.double().diagonal().mean()
    left = gram.double()[columns][:, columns] + g * torch.eye(kept).double()
    right = weight.double() @ gram.double()[:, columns] + g * weight.double()[:, columns]
    place = room(tmp_path, panels)
    solution = place.matrix(rows, kept)
    result = ridge_into(stored(gram, panels), stored(weight, panels), columns, 0.3, solution, place)
    assert result.damping == pytest.approx(0.3)
    assert result.retries == 0
    torch.testing.assert_close(solution.tensor, torch.linalg.solve(left, right.T).T)
    in_memory = ridge(gram, weight, columns, 0.3)
    torch.testing.assert_close(in_memory.weight, solution.tensor)


def test_a_layer_that_never_fires_out_of_memory(tmp_path: Path) -> None:
    panels = Panels(4)
    weight, kept = random_weight(9, 10, 6).float(), torch.tensor([0, 2, 3, 7, 8, 9])
    place = room(tmp_path, panels)
    solution = place.matrix(9, 6, torch.float32)
    ridge_into(
        stored(torch.zeros(10, 10), panels), stored(weight, panels), kept, 0.3, solution, place
    )
    assert torch.equal(solution.tensor, weight[:, kept])
    curve = damage_curve(stored(torch.zeros(10, 10), panels), stored(weight, panels), room=place)
    assert curve.damage.tolist() == [0.0] * 10
    groups = group_damage_curve(
        stored(torch.zeros(10, 10), panels), stored(weight, panels), 2, 5, place
    )
    assert groups.order.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("panel", [5, 16, 100])
def test_held_out_error_by_panels(tmp_path: Path, panel: int) -> None:
    draw = torch.Generator().manual_seed(9)
    seen, dense = torch.randn(70, 30, generator=draw), torch.randn(11, 30, generator=draw)
    kept = torch.arange(0, 30, 2)
    pruned = torch.randn(11, 15, generator=draw)
    wanted = seen @ dense.T
    exact = float((seen[:, kept] @ pruned.T - wanted).square().sum() / wanted.square().sum())
    panels = Panels(panel)
    found = relative_error_by_panels(
        stored(seen, panels),
        stored(dense, panels),
        stored(pruned, panels),
        kept,
        room(tmp_path, panels),
    )
    assert found == pytest.approx(exact, rel=1e-5)
    assert relative_error(seen, dense, pruned, kept) == pytest.approx(exact, rel=1e-5)
    assert relative_error(torch.zeros(3, 30), dense, pruned, kept) == 0.0


@pytest.mark.parametrize("panels", [Panels(), Panels(13, 32)], ids=str)
def test_the_same_bytes_each_time(tmp_path: Path, panels: Panels) -> None:
    gram, weight = random_gram(80, 10), random_weight(20, 80, 10)
    kept = torch.arange(0, 80, 2)
    curves, solutions = [], []
    for _ in range(2):
        place = room(tmp_path, panels)
        held = stored(gram, panels), stored(weight, panels)
        curves.append(damage_curve(*held, room=place))
        solution = place.matrix(20, 40)
        ridge_into(*held, kept, 0.3, solution, place)
        solutions.append(solution.tensor)
    assert torch.equal(curves[0].order, curves[1].order)
    assert torch.equal(curves[0].damage, curves[1].damage)
    assert torch.equal(*solutions)


@pytest.mark.parametrize("patience", [0, 3, 20])
def test_a_solve_can_be_stopped(tmp_path: Path, patience: int) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks > patience:
            raise Stopped("asked to")

    panels = Panels(8, 16)
    place = Room(CPU, panels, ScratchMatrices(tmp_path, CPU), tick)
    gram, weight = random_gram(60, 11), random_weight(10, 60, 11)
    with pytest.raises(Stopped):
        damage_curve(stored(gram, panels), stored(weight, panels), room=place)
    ticks, kept = max(0, patience - 9), torch.arange(60)  # It ticks ten times.
    solution = place.matrix(10, 60)
    with pytest.raises(Stopped):
        ridge_into(stored(gram, panels), stored(weight, panels), kept, 0.3, solution, place)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [(0, 0), (1, 20)])
def test_what_is_not_finite_is_refused(
    tmp_path: Path, value: float, where: tuple[int, int]
) -> None:
    gram, weight, panels = random_gram(30, 0), random_weight(3, 30, 0), Panels(8)
    gram[where] = gram[where[::-1]] = value
    place = room(tmp_path, panels)
    with pytest.raises(NumericalFailure):
        damage_curve(stored(gram, panels), stored(weight, panels), room=place)
    with pytest.raises(NumericalFailure):
        ridge_into(
            stored(gram, panels),
            stored(weight, panels),
            torch.arange(30),
            0.3,
            place.matrix(3, 30),
            place,
        )


def test_scratch_leaves_no_file_and_is_zero(tmp_path: Path) -> None:
    matrix = ScratchMatrices(tmp_path, CPU)(5, 7, torch.float32)
    assert not matrix.resident
    assert matrix.shape == (5, 7)
    assert not matrix.tensor.any()
    matrix.write(slice(1, 3), slice(2, 4), torch.ones(2, 2))
    assert float(matrix.tensor.sum()) == 4.0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ScratchUnavailable, match=r"280 bytes .* no space left"):
        ScratchMatrices(tmp_path, CPU)(5, 7, torch.float64)
    with pytest.raises(ScratchUnavailable, match="no such file or directory"):
        ScratchMatrices(tmp_path / "nowhere", CPU)(5, 7, torch.float64)


def test_host_and_device_matrices_are_read_alike() -> None:
    whole = torch.arange(42.0).view(6, 7)
    buffer = torch.empty(42)
    for matrix in (DeviceMatrix(whole.clone()), HostMatrix(whole.numpy().copy(), CPU)):
        assert torch.equal(matrix.read(slice(1, 4), slice(2, 7), buffer), whole[1:4, 2:7])
        out = torch.empty(2, 3, dtype=torch.float64)
        matrix.gather(torch.tensor([4, 0]), torch.tensor([1, 2, 6]), out)
        assert torch.equal(out, whole[[4, 0]][:, [1, 2, 6]].double())
        matrix.gather(slice(2, 4), slice(0, 3), out)
        assert torch.equal(out, whole[2:4, :3].double())
        assert torch.equal(matrix.diagonal(), whole.diagonal())
        panel = torch.arange(8.0).view(2, 4)
        matrix.write_symmetric(slice(2, 4), panel)
        assert torch.equal(matrix.tensor[2:4, :4], panel)
        assert torch.equal(matrix.tensor[:2, 2:4], panel[:, :2].T)


@pytest.mark.parametrize("columns", [slice(0, 599), torch.arange(0, 599, 2), torch.tensor([3, 9])])
def test_picking_copies_no_more_than_what_is_picked(columns: slice | Tensor) -> None:
    matrix = HostMatrix(np.zeros((600, 600)), CPU)
    rows = torch.tensor([5, 1, 599])
    width = 599 if isinstance(columns, slice) else len(columns)
    out = torch.empty(3, width, dtype=torch.float64)
    tracemalloc.start()
    matrix.gather(rows, columns, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 600 * 600 * 8 / 20


def test_a_host_matrix_needs_a_room() -> None:
    with pytest.raises(ValueError, match="room"):
        damage_curve(HostMatrix(np.eye(3), CPU), torch.ones(2, 3))
