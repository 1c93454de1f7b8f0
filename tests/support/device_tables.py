"""Tables of devices that no machine is: their times are formulas, so that sums can be checked."""

from __future__ import annotations

from typing import Any

from strucprune_core.plan.device_table import DeviceTable

WIDTHS = (8, 64, 256, 1024)
GROUPS = (1, 2, 4)
CONTEXTS = (16, 4096)


def product(tokens: int, inputs: int, outputs: int) -> float:
    """A call, and reading and multiplying by each weight."""
    return 1e-6 + inputs * outputs * (1e-9 + 1e-10 * tokens)


def attention(cached: int, keys: int, group: int) -> float:
    """Every key and query of every cached token."""
    return 2e-6 + 1e-9 * (cached + 1) * keys * (1 + group)


def beside(tokens: int, width: int) -> float:
    """What norms and activations take."""
    return 3e-6 + 1e-10 * tokens * width


def made_table(**changes: Any) -> DeviceTable:
    """The table of these formulas, with decode of 1 and 4 sequences and prefill of 32 tokens."""
    body = {
        "device": "made for tests",
        "kind": "cpu",
        "threads": 1,
        "dtype": "float32",
        "runtime": "formulas",
        "measured_on": "2026-01-01",
        "rounds": 1,
        "spread": 0.0,
        "widths": WIDTHS,
        "groups": GROUPS,
        "decode": [passed(1, 1, CONTEXTS), passed(4, 1, CONTEXTS)],
        "prefill": [passed(1, 32, (0,))],
    }
    return DeviceTable.model_validate({**body, **changes})


def passed(sequences: int, tokens: int, contexts: tuple[int, ...]) -> dict[str, Any]:
    """One kind of pass."""
    new = sequences * tokens
    return {
        "sequences": sequences,
        "tokens": tokens,
        "contexts": contexts,
        "products": [[product(new, i, j) for j in WIDTHS] for i in WIDTHS],
        "layer": [beside(new, width) for width in WIDTHS],
        "activation": [beside(new, width) for width in WIDTHS],
        "attention": [
            [[attention(sequences * each, keys, group) for group in GROUPS] for keys in WIDTHS]
            for each in contexts
        ],
        "model": [beside(new, width) for width in WIDTHS],
    }
