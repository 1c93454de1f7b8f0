"""Bytes on the device, bytes of scratch and operations of the solver's routines. No torch.

m columns of the matrix (f, or heads times their width), d rows of the weight matrix, k kept
columns, p rows of a panel, s columns of a superblock. A matrix whose columns fit a panel is on the
device whole, and its line is then not zero; another is in scratch. Device bytes are listed by
phase; phases follow one another, so the peak is the largest. Lines with * 8 are float64, with * 4
float32.
"""

from __future__ import annotations

from strucprune_core.method.linalg.panels import BLOCK_CHANNELS, Panels

FP64_BYTES = 8
FP32_BYTES = 4
# Vectors of m values while channels are removed: both diagonals, names, the order so far.
REMOVAL_VECTORS = 4
# float64 matrices that live at once in ADMM. (m x m): H and its factor, C^-1 H C^-T and its factor,
# and the matrix being factorised; (d x m): W0, B, Z, U, W, V and the scaled dense weights.
ADMM_SQUARES, ADMM_WEIGHTS = 5, 9


def gram_device_bytes(m: int, tokens: int, panels: Panels) -> dict[str, int]:
    """Adding a micro-batch of activations (tokens x m, float32, not counted) to a Gram matrix."""
    return {
        "sums": _resident(m, m, panels) * FP32_BYTES,
        "scaled_activations": tokens * m * FP32_BYTES,
        "panel": _visiting(m, m, panels) * FP32_BYTES,
    }


def gram_flops(m: int, tokens: int) -> int:
    """Half of a full product: only the lower half is computed."""
    return tokens * m * m


def curve_device_bytes(m: int, d: int, panels: Panels, size: int = 1) -> dict[str, int]:
    """A damage curve of groups of `size` columns, by phase.

    Statistics and weights count where they are resident (float32).
    """
    p = panels.step(m)
    given = (_resident(m, m, panels) + _resident(d, m, panels)) * FP32_BYTES
    matrix = _resident(m, m, panels) * FP64_BYTES
    visiting = _visiting(m, m, panels) * FP64_BYTES
    columns = m * FP64_BYTES  # Names of the columns.
    most = size if size > 1 else min(m, BLOCK_CHANNELS)
    capacity = panels.capacity(m, most)
    low_rank = 2 * capacity * m * FP64_BYTES
    # Diagonal blocks of both matrices, and as much again when they are factorised or updated.
    blocks = 4 * m * size * FP64_BYTES if size > 1 else 0
    vectors = (REMOVAL_VECTORS * m if size == 1 else m) * FP64_BYTES
    left = m - capacity  # Columns after a superblock.
    panel = min(p, left) * left
    copies = panel if panels.fits(m) else 0  # Parts of a resident matrix, copied into a panel.
    return {
        "inverse": given
        + matrix
        + p * m * FP64_BYTES
        + visiting
        + p * (p + min(p, m - p)) * FP64_BYTES
        + columns,
        "energy": given + 2 * matrix + min(d, panels.rows(m)) * m * FP64_BYTES + visiting + columns,
        "removals": given
        + 2 * matrix
        + low_rank
        + blocks
        + (most * m * FP64_BYTES if size == 1 else 0)
        + 2 * (capacity - most) * most * FP64_BYTES
        + vectors,
        "update": given
        + 2 * matrix
        + low_rank
        + blocks // 2
        + max(panel + copies, BLOCK_CHANNELS * left) * FP64_BYTES
        + vectors,
    }


def curve_scratch_bytes(m: int, d: int, panels: Panels) -> dict[str, int]:
    """Scratch of a damage curve, without the statistics' file."""
    return {
        "inverse": _in_scratch(m, m, panels) * FP64_BYTES,
        "energy": _in_scratch(m, m, panels) * FP64_BYTES,
        "weight": _in_scratch(d, m, panels) * FP32_BYTES,
    }


def curve_flops(m: int, d: int, panels: Panels) -> dict[str, int]:
    """Operations of a damage curve."""
    s = panels.capacity(m, BLOCK_CHANNELS)
    return {
        "inverse": m**3,
        "energy": d * m * m,
        # Rows of both matrices corrected by what a superblock has removed so far.
        "corrections": 3 * m * m * s // 2,
        # A third for the inverse, two for the energy.
        "updates": m**3,
    }


def ridge_device_bytes(m: int, d: int, k: int, panels: Panels) -> dict[str, int]:
    """A reconstruction, by phase. Statistics, weights and solution count where resident."""
    rows, part = min(d, panels.rows(m)), min(k, panels.rows(m))
    inner, substituted = panels.step(k), min(k, panels.rows(k))
    given = (
        _resident(m, m, panels) + _resident(d, m, panels) + _resident(d, k, panels)
    ) * FP32_BYTES
    factor = _resident(k, k, panels) * FP64_BYTES
    kept = k * FP64_BYTES
    # Parts of resident statistics, copied into a panel.
    picked = _resident(part, m, panels) * FP32_BYTES
    return {
        "factor": given
        + factor
        + (inner * k + _visiting(k, k, panels) + inner * inner) * FP64_BYTES
        + (inner * k * FP32_BYTES if panels.fits(m) else 0)
        + kept,
        "solve": given
        + factor
        + (rows * m + rows * k + part * m) * FP64_BYTES
        + max(picked, rows * max(part, substituted) * FP64_BYTES)
        + kept,
    }


def ridge_scratch_bytes(m: int, d: int, k: int, panels: Panels) -> dict[str, int]:
    """Scratch of a reconstruction, without the statistics' file."""
    return {
        "factor": _in_scratch(k, k, panels) * FP64_BYTES,
        "weight": _in_scratch(d, m, panels) * FP32_BYTES,
        "solution": _in_scratch(d, k, panels) * FP32_BYTES,
    }


def ridge_flops(m: int, d: int, k: int) -> dict[str, int]:
    """Operations of a reconstruction."""
    return {"factor": k**3 // 3, "right_side": 2 * d * m * k, "substitution": 2 * d * k * k}


def error_device_bytes(m: int, d: int, k: int, tokens: int, panels: Panels) -> dict[str, int]:
    """The error on held-out tokens. Activations and weights count where resident."""
    outputs, rows = min(d, panels.rows(m)), min(tokens, panels.rows(m))
    return {
        "given": (_resident(tokens, m, panels) + _resident(d, m, panels) + _resident(d, k, panels))
        * FP32_BYTES,
        "weights": outputs * (m + k) * FP32_BYTES,
        "activations": rows * (m + k) * FP32_BYTES,
        # The outputs, and either their squares or the kept columns copied into a panel.
        "outputs": max(2 * rows * outputs, rows * k if panels.fits(m) else 0) * FP32_BYTES,
        "kept": k * FP64_BYTES,
    }


def error_flops(m: int, d: int, k: int, tokens: int) -> int:
    """Operations of the error on held-out tokens."""
    return 2 * tokens * d * (m + k)


def admm_device_bytes(m: int, d: int) -> dict[str, int]:
    """ADMM holds whole matrices: with it, panels must fit all columns."""
    return {
        "given": (m * m + d * m) * FP32_BYTES,
        "squares": ADMM_SQUARES * m * m * FP64_BYTES,
        "weights": ADMM_WEIGHTS * d * m * FP64_BYTES,
    }


def _resident(rows: int, columns: int, panels: Panels) -> int:
    """Elements of a matrix on the device."""
    return rows * columns if panels.fits(columns) else 0


def _in_scratch(rows: int, columns: int, panels: Panels) -> int:
    """Elements of a matrix in scratch."""
    return 0 if panels.fits(columns) else rows * columns


def _visiting(rows: int, columns: int, panels: Panels) -> int:
    """Elements of the buffer through which a matrix passes."""
    return 0 if panels.fits(columns) else min(rows, panels.step(columns)) * columns
