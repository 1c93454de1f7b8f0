"""Formulas of the solver's memory against the bytes that tensors really take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from strucprune_core.method.gram import GramAccumulator
from strucprune_core.method.layer.admm import admm
from strucprune_core.method.layer.damage_curve import damage_curve
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.method.layer.ridge import relative_error_by_panels, ridge_into
from strucprune_core.method.linalg.matrices import DeviceMatrix, Matrix, Room
from strucprune_core.method.linalg.panels import ALL_RESIDENT, Panels
from strucprune_core.plan.memory import solver as memory
from strucprune_core.run.tensor_bytes import TensorBytes
from strucprune_core.scratch.mapped_matrix import HostMatrix, ScratchMatrices

CPU = torch.device("cpu")
SHAPES = [(384, 128), (448, 600), (512, 200), (640, 100), (704, 256), (832, 300)]
PANELS = [Panels(32, 32), Panels(64, 128), Panels(200, 64), ALL_RESIDENT]
TOLERANCE = 0.1
TOKENS = 300

CASES = pytest.mark.parametrize("panels", PANELS, ids=str)
WIDTHS = pytest.mark.parametrize(("m", "d"), SHAPES)


class Case:
    """A problem of given shapes, where a plan puts it."""

    def __init__(self, m: int, d: int, panels: Panels, directory: Path) -> None:
        draw = torch.Generator().manual_seed(m)
        self.panels = panels
        self.room = Room(CPU, panels, ScratchMatrices(directory, CPU))
        self.activations = torch.randn(2 * m, m, generator=draw)
        self.weight = torch.randn(d, m, generator=draw)
        self.gram = self.activations.T @ self.activations / (2 * m)
        self.kept = torch.randperm(m, generator=draw)[: 7 * m // 10].sort().values

    def stored(self, tensor: Tensor) -> Matrix:
        """A matrix that counts if it is resident, and does not if it is not."""
        if self.panels.fits(tensor.shape[1]):
            return DeviceMatrix(tensor.clone())
        return HostMatrix(tensor.numpy().copy(), CPU)


def agrees(measured: TensorBytes, predicted: Mapping[str, int] | int) -> None:
    if not isinstance(predicted, int):
        predicted = max(predicted.values())
    assert predicted == pytest.approx(measured.take_peak(), rel=TOLERANCE)


@CASES
@WIDTHS
def test_curve(tmp_path: Path, m: int, d: int, panels: Panels) -> None:
    case = Case(m, d, panels, tmp_path)
    with TensorBytes() as measured:
        damage_curve(case.stored(case.gram), case.stored(case.weight), room=case.room)
    agrees(measured, memory.curve_device_bytes(m, d, panels))


@CASES
@WIDTHS
def test_group_curve(tmp_path: Path, m: int, d: int, panels: Panels) -> None:
    case = Case(m, d, panels, tmp_path)
    with TensorBytes() as measured:
        group_damage_curve(case.stored(case.gram), case.stored(case.weight), 64, room=case.room)
    agrees(measured, memory.curve_device_bytes(m, d, panels, 64))


@CASES
@WIDTHS
def test_ridge(tmp_path: Path, m: int, d: int, panels: Panels) -> None:
    case = Case(m, d, panels, tmp_path)
    k = len(case.kept)
    with TensorBytes() as measured:
        ridge_into(
            case.stored(case.gram),
            case.stored(case.weight),
            case.kept.clone(),
            0.3,
            case.room.matrix(d, k, torch.float32),
            case.room,
        )
    agrees(measured, memory.ridge_device_bytes(m, d, k, panels))


@CASES
@WIDTHS
def test_held_out_error(tmp_path: Path, m: int, d: int, panels: Panels) -> None:
    case = Case(m, d, panels, tmp_path)
    pruned = case.weight[:, case.kept]
    with TensorBytes() as measured:
        relative_error_by_panels(
            case.stored(case.activations[:TOKENS]),
            case.stored(case.weight),
            case.stored(pruned),
            case.kept.clone(),
            case.room,
        )
    terms = memory.error_device_bytes(m, d, len(case.kept), TOKENS, panels)
    agrees(measured, sum(terms.values()))


@CASES
@WIDTHS
def test_gram(tmp_path: Path, m: int, d: int, panels: Panels) -> None:
    case = Case(m, d, panels, tmp_path)
    seen, weights = case.activations[:TOKENS].clone(), torch.ones(TOKENS)
    with TensorBytes() as measured:
        sums = None if panels.fits(m) else case.room.matrix(m, m, torch.float32)
        grams = GramAccumulator(m, case.room, sums)
        for _ in range(2):
            grams.add(seen, weights)
        grams.finish(2.0 * TOKENS)
    agrees(measured, sum(memory.gram_device_bytes(m, TOKENS, panels).values()))


@pytest.mark.parametrize(("m", "d"), [(96, 30), (128, 64), (160, 300)])
def test_admm(tmp_path: Path, m: int, d: int) -> None:
    case = Case(m, d, ALL_RESIDENT, tmp_path)
    with TensorBytes() as measured:
        admm(case.gram.clone(), case.weight.clone(), m // 2, 0.01, start=torch.arange(m // 2))
    agrees(measured, sum(memory.admm_device_bytes(m, d).values()))


def test_a_panel_bounds_the_device_whatever_the_width() -> None:
    for grown in (2, 4, 8):
        few = memory.curve_device_bytes(1000, 250, Panels(64, 64))
        many = memory.curve_device_bytes(1000 * grown, 250 * grown, Panels(64, 64))
        assert max(many.values()) <= 1.05 * grown * max(few.values())


def test_scratch_is_what_is_not_resident() -> None:
    assert set(memory.curve_scratch_bytes(100, 30, ALL_RESIDENT).values()) == {0}
    assert memory.curve_scratch_bytes(100, 30, Panels(10)) == {
        "inverse": 80_000,
        "energy": 80_000,
        "weight": 12_000,
    }
    assert memory.ridge_scratch_bytes(100, 30, 70, Panels(10)) == {
        "factor": 39_200,
        "weight": 12_000,
        "solution": 8_400,
    }
    # The kept columns fit a panel that all columns do not fit.
    assert memory.ridge_scratch_bytes(100, 30, 70, Panels(80)) == {
        "factor": 0,
        "weight": 12_000,
        "solution": 0,
    }
