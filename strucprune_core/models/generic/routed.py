"""What a layer's experts do with tokens: recorded, and with some of them left out by the router.

transformers' experts modules are decorated (`use_experts_implementation`): flags say how their
matrices are stored, and the tokens that each expert gets are an argument. `recording` computes what
such a module computes, one expert after the other, and sums up what each puts out. Llama 4 has a
class of its own: each expert gets all tokens, times the router's weight, which is 0 for most.

`masking` changes no weight: whatever is multiplied with the router's matrix gets a score for some
experts that no token prefers to any other. What the layer then computes is what it must compute
once these experts are cut out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")

_WEIGHTED = ("Llama4TextExperts",)
"""Classes whose experts get tokens times the router's weights, all tokens for each expert."""

NEVER_CHOSEN = -1e9
"""A score below any that a router gives; finite, since routers multiply."""


class NoRecord(Exception):
    """Experts of this layer cannot be recorded; the message is the reason, for users."""


class ExpertSums:
    """Sums over the tokens that reached each expert of a layer.

    Attributes:
        tokens: How many did, (E,) int64.
        squares: Sum of the squared norm of the expert's output, (E,) float64. Of experts that get
            tokens times the router's weight, the weight is in it.
        gated: Sum of the router's weight times the norm of the output, (E,) float64.
    """

    def __init__(self, experts: int) -> None:
        self.tokens = torch.zeros(experts, dtype=torch.int64)
        self.squares = torch.zeros(experts, dtype=torch.float64)
        self.gated = torch.zeros(experts, dtype=torch.float64)

    def add(self, expert: int, outputs: Tensor, gates: Tensor) -> None:
        """Add an expert's outputs (n x d) and their weights (n,) in the layer's sum."""
        squares = outputs.double().square().sum(-1)
        self.tokens[expert] += len(outputs)
        self.squares[expert] += squares.sum().cpu()
        self.gated[expert] += (gates.double() * squares.sqrt()).sum().cpu()


Answer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Given tokens (n x d), their experts (n x k) and the weights of these (n x k): the sum (n x d)."""

Add = Callable[[int, Tensor, Tensor], None]
"""Called with an expert, its outputs (n x d) and their weights (n,) in the layer's sum."""


@contextlib.contextmanager
def recording(layer: nn.Module, sums: ExpertSums) -> Iterator[None]:
    """Inside, a decoder layer's experts add what they do to `sums`.

    Raises:
        NoRecord: the layer has no module that can be recorded, or several.
    """
    with _computing(_experts_module(layer), sums.add):
        yield


@contextlib.contextmanager
def one_by_one(layer: nn.Module) -> Iterator[nn.Module]:
    """Inside, a decoder layer's experts compute one after the other: (the module of experts).

    Of its matrices nothing is used but single experts' (`[e]`), and their number.

    Raises:
        NoRecord: as `recording`.
    """
    module = _experts_module(layer)
    if isinstance(vars(module).get("forward"), Recorder | _Weighted):
        yield module
        return
    with _computing(module, None):
        yield module


@contextlib.contextmanager
def asked(layer: nn.Module, answer: Answer) -> Iterator[None]:
    """Inside, `answer` is asked in place of a decoder layer's experts.

    Raises:
        NoRecord: as `recording`, or a class of its own says less.
    """
    with _standing_in(layer, lambda _, *given: answer(*given)):
        yield


@contextlib.contextmanager
def _standing_in(
    layer: nn.Module, stand_in: Callable[[Answer, Tensor, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Inside, `stand_in` is called in place of a layer's experts, which it is given first."""
    module = _experts_module(layer)
    if type(module).__name__ in _WEIGHTED:
        raise NoRecord("its class weights what experts are given, not what they give")
    plain = module.forward

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return stand_in(plain, hidden_states, top_k_index, top_k_weights)

    module.forward = forward
    try:
        yield
    finally:
        module.forward = plain


@contextlib.contextmanager
def _computing(module: Any, add: Add | None) -> Iterator[None]:
    """Inside, a module computes one expert after the other, and tells `add` what they put out."""
    plain = module.forward
    kind = Recorder if hasattr(module, _FLAGS[0]) else _Weighted
    module.forward = kind(module, add)
    try:
        yield
    finally:
        module.forward = plain


Seen = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with what a layer's experts are given and give: tokens (n x d), the experts of each token
(n x k), their weights (n x k), and the sum (n x d)."""


@contextlib.contextmanager
def observing(layer: nn.Module, seen: Seen) -> Iterator[None]:
    """Inside, a decoder layer's experts tell what they are given and give.

    Raises:
        NoRecord: as `recording`, or a class of its own says less.
    """

    def observed(experts: Answer, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = experts(tokens, chosen, weights)
        seen(tokens, chosen, weights, result)
        return result

    with _standing_in(layer, observed):
        yield


class DownMatrices:
    """The experts of a layer that has its weights: what meets their down matrices.

    Raises:
        NoRecord: as `observing`, or what a down matrix puts out is not what its expert adds.
    """

    parameter = "down_proj"

    def __init__(self, layer: nn.Module) -> None:
        self._module = _experts_module(layer)
        if type(self._module).__name__ in _WEIGHTED or self._module.has_post_expert_norm:
            raise NoRecord("a norm or a weight stands between a down matrix and the layer's sum")
        self.transposed = bool(self._module.is_transposed)

    def activations(self, expert: int, tokens: Tensor) -> Tensor:
        """What an expert's down matrix is given, (n x f), for tokens (n x d)."""
        return _inner(self._module, expert, tokens)

    def matrix(self, expert: int) -> Tensor:
        """An expert's down matrix as it is stored: (d x f), or (f x d) if `transposed`."""
        matrix: Tensor = getattr(self._module, self.parameter)[expert]
        return matrix


def can_record(layer: nn.Module) -> bool:
    """Whether a layer has one module of experts that can be recorded."""
    try:
        _experts_module(layer)
    except NoRecord:
        return False
    return True


def _experts_module(layer: nn.Module) -> Any:
    found = [
        module
        for module in layer.modules()
        if all(hasattr(module, f) for f in _FLAGS) or type(module).__name__ in _WEIGHTED
    ]
    if len(found) != 1:
        raise NoRecord(
            "its class computes experts in a way of its own, which says nothing of single experts"
            if not found
            else "its layers have experts in several places"
        )
    return found[0]


class Recorder:
    """Computes what a decorated experts module does, one expert after the other."""

    def __init__(self, module: Any, add: Add | None) -> None:
        self._module, self._add = module, add

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts, (n x d), for tokens (n x d)."""
        result = torch.zeros_like(hidden_states)
        for expert in range(len(self._module.down_proj)):
            tokens, place = (top_k_index == expert).nonzero(as_tuple=True)
            if not len(tokens):
                continue
            weighted = self.weighted(expert, hidden_states[tokens], top_k_weights[tokens, place])
            result.index_add_(0, tokens, weighted.to(result.dtype))
        return result

    def weighted(self, expert: int, tokens: Tensor, gates: Tensor) -> Tensor:
        """An expert's outputs (n x d) times their weights (n,), for tokens (n x d)."""
        outputs = self._outputs(expert, tokens)
        if self._add is not None:
            self._add(expert, outputs, gates)
        return outputs * gates[:, None]

    def _outputs(self, expert: int, tokens: Tensor) -> Tensor:
        """One expert's output, (n x d)."""
        module = self._module
        outputs = _product(module, "down_proj", expert, _inner(module, expert, tokens))
        if module.has_post_expert_norm:
            outputs = module.post_expert_norm(outputs)
        return outputs


def _inner(module: Any, expert: int, tokens: Tensor) -> Tensor:
    """What an expert's down matrix is given, (n x f)."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _product(module, name, expert, tokens)
    found: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return found


def _product(module: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    matrix = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return functional.linear(rows, matrix.T if module.is_transposed else matrix, bias)


class _Weighted:
    """Computes what a module does whose experts get all tokens times their weights.

    Most weights are 0. Of such a token an expert makes 0, so only the others are computed.
    """

    def __init__(self, module: Any, add: Add | None) -> None:
        self._module, self._add = module, add

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """The experts' outputs, (E * n x d), for tokens (E * n x d), expert by expert."""
        module, outputs = self._module, torch.zeros_like(hidden_states)
        experts = len(module.down_proj)
        given, results = (
            each.view(experts, -1, each.shape[-1]) for each in (hidden_states, outputs)
        )
        for expert in range(experts):
            reached = given[expert].any(-1)
            if not bool(reached.any()):
                continue
            gate, up = (given[expert][reached] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
            found = (up * module.act_fn(gate)) @ module.down_proj[expert]
            results[expert][reached] = found
            if self._add is not None:
                self._add(expert, found, found.new_ones(len(found)))
        return outputs


class masking(TorchFunctionMode):  # noqa: N801 - used like a function
    """Inside, products with some matrices never choose some experts.

    Args:
        matrices: Called once inside: routers' matrices, (scores x d).
        removed: Experts.
    """

    def __init__(self, matrices: Callable[[], Sequence[Tensor]], removed: Sequence[int]) -> None:
        super().__init__()
        self._matrices = matrices
        self._removed = torch.tensor(list(removed), dtype=torch.int64)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute, and replace scores."""
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() < 2:
            return result
        given = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        with torch._C.DisableTorchFunction():
            for matrix in self._matrices():
                if self._multiplies(given, matrix, result):
                    result = result.index_fill(-1, self._removed.to(result.device), NEVER_CHOSEN)
        return result

    def _multiplies(self, given: list[Tensor], matrix: Tensor, result: Tensor) -> bool:
        same = any(each.data_ptr() == matrix.data_ptr() for each in given)
        scores = result.shape[-1] == len(matrix)
        return same and scores and result.data_ptr() != matrix.data_ptr()
