"""The tensors of a layer, with the parameters that transformers' modules make of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class LayerTensors(dict[str, Tensor]):
    """A layer's tensors by name, not to be changed.

    Joining the matrices of all experts into one parameter copies most of a layer. It is done once,
    not for each micro-batch, and forgotten with the tensors.

    Attributes:
        parameters: What modules have made of them; None as long as none have.
    """

    parameters: Mapping[str, Tensor] | None = None
