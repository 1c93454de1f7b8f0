"""A model in FP8 as vLLM loads it (compressed-tensors): which tensors, and what config.json says.

No torch. The matrices of decoder layers are stored in float8_e4m3fn, each with a factor for every
row (output channel). Runtimes quantise activations themselves, by token, while they compute.
Embeddings, norms, biases and the head stay as they are. The arithmetic is in `export.fp8_source`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from strucprune_core.checkpoint.quantised import QUANTISATION
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import Shapes, expected_tensors, layer_tensors, tensor_name

PACKAGE = "compressed_tensors"
"""What the export is made with; the extra `fp8` of our own package installs it."""
FACTORS = "_scale"
"""Behind the name of a matrix, the name of its factors: (rows, 1) float32."""
MATRIX_DTYPE, FACTORS_DTYPE = "F8_E4M3", "F32"
_SUFFIX = ".weight"

# As the package's own preset FP8_DYNAMIC, which a test compares with this.
SCHEME: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "strategy": "channel",
        "dynamic": False,
    },
    "input_activations": {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    },
}


def quantised_matrices(config: ModelConfig) -> Shapes:
    """Names and shapes of the matrices that are quantised.

    Args:
        config: A model that `export.checks` lets through.
    """
    return {
        tensor_name(config, layer, role): shape
        for layer in range(config.layers)
        for role, shape in layer_tensors(config, layer).items()
        if len(shape) == 2
    }


def with_factors(shapes: Shapes, matrices: Container[str]) -> Shapes:
    """Shapes of the file's tensors: each of `matrices` is followed by its factors."""
    result: Shapes = {}
    for name, shape in shapes.items():
        result[name] = shape
        if name in matrices:
            result[name + FACTORS] = (shape[0], 1)
    return result


def stored_dtype(name: str, matrices: Container[str], dense: str) -> str:
    """Safetensors dtype of a tensor of the file.

    Args:
        name: A name of `with_factors`.
        matrices: The matrices that are quantised.
        dense: The dtype of a tensor that stays as it is.
    """
    if name in matrices:
        return MATRIX_DTYPE
    return FACTORS_DTYPE if matrix_of(name, matrices) != name else dense


def matrix_of(name: str, matrices: Container[str]) -> str:
    """The matrix that factors belong to; any other name as it is."""
    matrix = name.removesuffix(FACTORS)
    return matrix if matrix in matrices else name


def config_json(pruned: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """config.json of the export.

    Args:
        pruned: That of the pruned checkpoint.
        config: Its shape as its files hold it.
    """
    matrices = quantised_matrices(config)
    others = {
        name.removesuffix(_SUFFIX)
        for name, shape in expected_tensors(config).items()
        if len(shape) == 2 and name not in matrices
    }
    section = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": SCHEME},
        # transformers 5 has one name for all heads, whatever the files call them.
        "ignore": sorted(others | {config.names.head.removesuffix(_SUFFIX), "lm_head"}),
    }
    return {**pruned, QUANTISATION: section}
