"""Curves and repairs in float32: as good as in float64 where a check says so, else in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from strucprune_core.errors import NumericalFailure
from strucprune_core.method.layer import damage_curve as module
from strucprune_core.method.layer.curve_check import CurveCheck
from strucprune_core.method.layer.damage_curve import DamageCurve, damage_curve, prepare
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.method.layer.ridge import Ridge, ridge_into
from strucprune_core.method.linalg.checked import TOLERANCE, Inaccurate, checked, require
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, Room, as_matrix
from strucprune_core.method.linalg.panels import Panels
from strucprune_core.scratch.mapped_matrix import HostMatrix, ScratchMatrices
from tests.core.method.exact import random_gram, random_weight

CPU = torch.device("cpu")
PANELS = [Panels(), Panels(16, 32)]


def narrow(directory: Path, panels: Panels = PANELS[0]) -> Room:
    return Room(CPU, panels, ScratchMatrices(directory, CPU), dtype=torch.float32)


def wide(room: Room) -> Room:
    return replace(room, dtype=torch.float64)


def stored(tensor: Tensor, panels: Panels) -> Matrix:
    if panels.fits(tensor.shape[1]):
        return DeviceMatrix(tensor.float())
    return HostMatrix(tensor.float().numpy().copy(), CPU)


def one_direction(channels: int, strength: float) -> Tensor:
    """A Gram matrix with one direction that is far stronger than all others."""
    direction = random_weight(1, channels, 5)
    return random_gram(channels, 5) + strength * direction.T @ direction


def assert_alike(found: DamageCurve, wanted: DamageCurve) -> None:
    assert (found.dtype, wanted.dtype) == (torch.float32, torch.float64)
    assert torch.equal(found.order, wanted.order)
    torch.testing.assert_close(found.damage, wanted.damage, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("panels", PANELS, ids=str)
def test_curves_are_those_of_float64(tmp_path: Path, panels: Panels) -> None:
    gram, weight = stored(random_gram(96, 1), panels), stored(random_weight(40, 96, 1), panels)
    room = narrow(tmp_path, panels)
    assert_alike(damage_curve(gram, weight, room=room), damage_curve(gram, weight, room=wide(room)))
    assert_alike(
        group_damage_curve(gram, weight, 8, 2, room),
        group_damage_curve(gram, weight, 8, 2, wide(room)),
    )


def repaired(
    gram: Tensor, room: Room, panels: Panels = PANELS[0], damping: float = 0.1
) -> tuple[Ridge, Tensor]:
    columns = torch.arange(0, len(gram), 2)
    solution = room.matrix(40, len(columns), torch.float32)
    weight = stored(random_weight(40, len(gram), 1), panels)
    went = ridge_into(stored(gram, panels), weight, columns, damping, solution, room)
    return went, solution.tensor.clone()


@pytest.mark.parametrize("panels", PANELS, ids=str)
def test_repairs_are_those_of_float64(tmp_path: Path, panels: Panels) -> None:
    gram, room = random_gram(96, 1), narrow(tmp_path, panels)
    found, solution = repaired(gram, room, panels)
    wanted, exact = repaired(gram, wide(room), panels)
    assert (found.dtype, wanted.dtype) == (torch.float32, torch.float64)
    assert found.damping == pytest.approx(wanted.damping)
    torch.testing.assert_close(solution, exact, rtol=1e-4, atol=1e-5)


def test_a_badly_conditioned_layer_is_computed_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the usual damping the condition number is at most 100 times the number of columns.
    monkeypatch.setattr(module, "HESSIAN_DAMPING", 1e-6)
    gram, weight = one_direction(64, 1e4).float(), random_weight(20, 64, 1).float()
    room = narrow(tmp_path)
    found, wanted = (damage_curve(gram, weight, room=each) for each in (room, wide(room)))
    assert found.dtype == torch.float64
    assert torch.equal(found.order, wanted.order)
    assert torch.equal(found.damage, wanted.damage)
    assert found.retries == wanted.retries
    went, solution = repaired(one_direction(64, 1e6), room, damping=1e-9)
    _, exact = repaired(one_direction(64, 1e6), wide(room), damping=1e-9)
    assert went.dtype == torch.float64
    assert torch.equal(solution, exact)


def test_no_ridge_is_raised_for_want_of_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HESSIAN_DAMPING", 1e-9)  # Below the rounding of float32.
    gram, weight = one_direction(64, 1e6), random_weight(20, 64, 1)
    _, info = torch.linalg.cholesky_ex(gram.float())
    assert int(info) != 0
    room = narrow(tmp_path)
    found, wanted = (damage_curve(gram, weight, room=each) for each in (room, wide(room)))
    assert (found.retries, found.dtype) == (wanted.retries, torch.float64)


def test_statistics_that_are_not_finite_are_refused_all_the_same(tmp_path: Path) -> None:
    gram = random_gram(32, 1).float()
    gram[3, 3] = torch.inf
    with pytest.raises(NumericalFailure, match="non-finite"):
        damage_curve(gram, random_weight(8, 32, 1), room=narrow(tmp_path))


def test_an_inverse_with_too_few_digits_is_found(tmp_path: Path) -> None:
    room, columns = narrow(tmp_path), torch.arange(64)
    gram, weight = (as_matrix(each) for each in (random_gram(64, 1), random_weight(8, 64, 1)))
    problem, _, check = prepare(gram, weight, columns, 1, room)
    assert check is not None
    eps = 0.01 * float(gram.tensor.diagonal().mean())
    problem.inverse.tensor.mul_(1.0 + 0.5 * TOLERANCE)
    CurveCheck(gram, columns, eps, problem, room)
    problem.inverse.tensor.mul_(1.0 + 2.0 * TOLERANCE)
    with pytest.raises(Inaccurate):
        CurveCheck(gram, columns, eps, problem, room)


def test_costs_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    room, columns = narrow(tmp_path), torch.arange(64)
    gram, weight = (as_matrix(each) for each in (random_gram(64, 1), random_weight(8, 64, 1)))
    problem, _, check = prepare(gram, weight, columns, 1, room)
    assert check is not None
    check.require_accurate(problem, 0.0)
    energy = float((weight.tensor @ gram.tensor * weight.tensor).sum())
    with pytest.raises(Inaccurate):
        check.require_accurate(problem, 0.01 * energy)


def test_what_a_check_allows() -> None:
    require(TOLERANCE)
    for residual in (2 * TOLERANCE, float("nan"), float("inf")):
        with pytest.raises(Inaccurate):
            require(residual)


def test_products_use_whole_operands(tmp_path: Path) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        seen = checked(narrow(tmp_path), lambda _: torch.backends.cuda.matmul.allow_tf32)
        assert seen is False
        assert torch.backends.cuda.matmul.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
