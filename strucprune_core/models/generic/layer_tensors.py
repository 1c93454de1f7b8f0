"""The tensors of a layer, with the parameters that transformers' modules make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from strucprune_core.models.config import Experts
from strucprune_core.models.panels import LayerWeights, Read
from strucprune_core.models.tensors import Shapes


class LayerTensors(dict[str, Tensor]):
    """A layer's tensors by name, not to be changed.

    Joining the matrices of all experts into one parameter copies most of a layer. It is done once,
    not for each micro-batch, and forgotten with the tensors.

    Attributes:
        parameters: What modules have made of them; None as long as none have.
    """

    parameters: Mapping[str, Tensor] | None = None


class ExpertwiseLayer(Mapping[str, Tensor]):
    """A layer's tensors by name, of which experts' matrices are read whenever they are used.

    Args:
        shapes: Shapes of all its tensors.
        experts: Its experts; `own` and `sliced` name the matrices that are read when used.
        read: Reads a tensor, or some of its rows.
        resident: The other tensors; None: they are read now.

    Attributes:
        shapes, experts, read, resident: These.
    """

    def __init__(
        self,
        shapes: Shapes,
        experts: Experts,
        read: Read,
        resident: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shapes, self.read, self.experts = shapes, read, experts
        streamed = {name.format(n) for name in experts.own for n in range(experts.count)}
        streamed |= {name for name, _ in experts.sliced}
        if resident is None:
            resident = {name: read(name, None) for name in shapes if name not in streamed}
        self.resident = resident

    def __getitem__(self, name: str) -> Tensor:
        if name in self.resident:
            return self.resident[name]
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def of_expert(self, name: str, expert: int) -> tuple[str, Tensor]:
        """An expert's part of the tensors that `experts` calls so: (its name in the files, values).

        A slice keeps its first dimension, of size 1.
        """
        if "{}" in name:
            own = name.format(expert)
            return own, self.read(own, None)
        return name, self.read(name, (expert, expert + 1))

    def replaced(self, tensors: Mapping[str, Tensor]) -> ExpertwiseLayer:
        """The same with other values of tensors that are resident."""
        if not tensors.keys() <= self.resident.keys():
            raise KeyError("experts' matrices cannot be replaced")
        return ExpertwiseLayer(self.shapes, self.experts, self.read, {**self.resident, **tensors})


def with_tensors(weights: LayerWeights, tensors: Mapping[str, Tensor]) -> LayerWeights:
    """A layer with other values of some tensors; nothing is read that was not."""
    if isinstance(weights, ExpertwiseLayer):
        return weights.replaced(tensors)
    return {**weights, **tensors}


class ExpertMatrices:
    """Stands in for the parameter that holds a matrix of each expert: `[e]` reads that expert's.

    Args:
        count: Experts.
        read: Reads an expert's matrix.
    """

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, expert: int) -> Tensor:
        return self._read(expert)
