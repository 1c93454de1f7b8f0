"""transformers' own modules, run one decoder layer at a time.

`forward` of the whole model is called for every layer, because only it knows what a layer is given
besides hidden states: masks, rotary tables, sometimes much more. Layers before the wanted one hand
on what is stored; the entry of the layer after it ends the pass. So each layer's weights are read
once for all tokens, as for the families that are written out, whatever the architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models.config import GenericModel
from strucprune_core.models.fields import FIELD
from strucprune_core.models.generic.gathered import (
    ExpertOutputs,
    GatheredLayer,
    Room,
    compute,
    new_outputs,
)
from strucprune_core.models.generic.layer_tensors import (
    ExpertMatrices,
    ExpertwiseLayer,
    LayerTensors,
)
from strucprune_core.models.generic.mixed_precision import check_residual, operands_in
from strucprune_core.models.generic.names import ParameterNames
from strucprune_core.models.generic.outside import is_text
from strucprune_core.models.generic.routed import (
    DownMatrices,
    ExpertSums,
    NoRecord,
    Seen,
    asked,
    can_record,
    masking,
    observing,
    one_by_one,
    recording,
)
from strucprune_core.models.generic.stored_states import Beside, StoredStates
from strucprune_core.models.generic.unseen import towers_may_lack, unseen_parts
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.pruned_shapes import family_of

# Keys of config.json that name code: of the checkpoint, or kernels on a hub.
_CODE_KEYS = ("auto_map", "attn_implementation", "experts_implementation", "custom_pipelines")
# Keys that ask for more results than logits, such as a loss of the router. They change no logit.
_RESULT_KEYS = ("output_router_logits", "output_attentions", "output_hidden_states")
_FLOAT = "__float__"
_ID = 1  # Any token: what is embedded is replaced.


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers, and its path in the model.

    It is the list with most parameters, in what the class calls its decoder if that has lists.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in (decoder or model).modules()}
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and is_text(path)
    ]
    best: tuple[int, str, nn.ModuleList] | None = None
    for path, module in [each for each in lists if id(each[1]) in inside] or lists:
        if best is None or not path.startswith(best[1]):
            size = sum(parameter.numel() for parameter in module.parameters())
            if best is None or size > best[0]:
                best = (size, path, module)
    if best is None:
        raise ValueError("the model has no list of layers")
    return best[1], best[2]


class _Stopped(Exception):
    """Ends a forward pass with what was wanted of it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True, slots=True)
class HeadRule:
    """What becomes of the product with the head's matrix: z = cap * tanh(scale * product / cap).

    Attributes:
        scale: Factor.
        cap: Soft cap; None has none.
    """

    scale: float
    cap: float | None


@dataclass(slots=True)
class WholePass:
    """A plain pass through a model, whose layers have weights while they run.

    Attributes:
        read: A layer's tensors by name within the layer, and what their names in the
            files begin with.
        only: Layers to run; the others hand on what they are given. None: all.
        inputs, outputs: Of each layer that ran, (b, n, d): filled by the pass.
    """

    read: Callable[[int], tuple[LayerWeights, str]]
    only: Collection[int] | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One layer's run.

    Attributes:
        hidden: Its output, (b, n, d).
        inputs: Inputs of some of its matrices, (b * n x width), by the names that were asked for.
        outputs: Outputs of some of its matrices, in the shape that their modules give.
    """

    hidden: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Modules:
    """A model of transformers, whose decoder layers have weights only while they run.

    Args:
        model: transformers' model, its parameters without memory (`meta_parameters.skeleton`).
        generic: What is known of it.
        tensors: Reads a tensor outside the layers by its name in the files, float32.
        vocabulary: Names in the files of the embedding and the head, which are never held whole.
        device: Where it computes.
    """

    def __init__(
        self,
        model: Any,
        generic: GenericModel,
        tensors: Callable[[str], Tensor],
        vocabulary: set[str],
        device: torch.device,
    ) -> None:
        self._device = device
        self._experts = None if generic.routing is None else generic.routing.experts
        self._returns, self._stored = generic.layer_returns, StoredStates(generic)
        self._handed = generic.carried.handed
        raw = json.loads(generic.config_json)
        decoder = raw.get("text_config", raw)
        self._numbers = [value for value in decoder.values() if isinstance(value, int | float)]
        self._model = model
        _say_device(model, device)
        self._names = ParameterNames(self._model)
        self._path, layers = decoder_layers(self._model)
        self._layers = list(layers)
        self._shapes = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}
        self._unseen = unseen_parts(self._model)
        self._buffers = {name for name, _ in self._model.named_buffers()}
        self._undo: list[Callable[[], None]] = []
        self._whole: WholePass | None = None
        self._hidden: Tensor | None = None
        self._beside = Beside()
        self._cache: Any = None
        self._dtype = torch.float32
        self._at = 0
        self._embedding = self._model.get_input_embeddings()
        self._padding, self._embedding.padding_idx = self._embedding.padding_idx, None
        self._head = self._model.get_output_embeddings()
        self._forward_head = self._head.forward
        for number, layer in enumerate(self._layers):
            layer.forward = _Layer(self, number, layer.forward)
        with torch.inference_mode(mode=False):  # Whoever asks next may want to differentiate.
            rest = {
                name: tensors(name).clone()
                for name, _ in generic.tensors
                if name not in vocabulary and self._is_text(name)
            }
            self._set(self._names.parameters(rest))

    # ---- what is run -------------------------------------------------------------------------

    def embed(self, ids: Tensor, rows: Tensor, tokens: Tensor, cache: Any = None) -> Tensor:
        """The first layer's input, (b, n, d).

        Args:
            ids: Of each token its place in `rows`, (b, n).
            rows: Rows of the embedding.
            tokens: Token ids, (b, n).
            cache: transformers' cache of what came before these tokens.
        """
        self._at, self._hidden, self._cache = -1, None, cache
        return self._run_tokens(ids, rows, tokens)

    def run_layer(
        self,
        layer: int,
        tensors: Mapping[str, Tensor],
        prefix: str,
        hidden: Tensor,
        *,
        inputs_of: Mapping[str, str] | None = None,
        outputs_of: Mapping[str, str] | None = None,
        cache: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> LayerRun:
        """What a layer makes of its input; autograd may follow it.

        Args:
            layer: Its number.
            tensors: Its tensors by name within the layer, as the files name and store them; their
                widths may be smaller than the model's.
            prefix: What their names in the files begin with.
            hidden: Its input, (b, n, d).
            inputs_of: Of each matrix whose input is kept, under which name: its name in the layer.
            outputs_of: The same of each matrix whose output is kept.
            cache: transformers' cache of what came before; the layer's part of it is extended.
            dtype: Of the operands of matrix products: float32 or bfloat16.

        Raises:
            UnsupportedArchitecture: in bfloat16, the layer's output is not float32.
        """
        run = LayerRun(hidden, {}, {})
        handles = [
            self._module_of(prefix + name).register_forward_pre_hook(_KeepInput(run.inputs, key))
            for key, name in (inputs_of or {}).items()
        ]
        handles += [
            self._module_of(prefix + name).register_forward_hook(_KeepOutput(run.outputs, key))
            for key, name in (outputs_of or {}).items()
        ]
        self._at = layer
        try:
            with self._loaded(layer, tensors, prefix), self._computing_in(dtype):
                self._cache = cache
                return replace(run, hidden=self._run_stored(hidden))
        finally:
            for handle in handles:
                handle.remove()

    def tokens_of_rows(self, hidden: Tensor) -> Tensor | None:
        """The token of each recorded row, where a token has several; None: they are one to one.

        Args:
            hidden: A layer's input, (b, n, d).
        """
        return self._stored.tokens_of_rows(*hidden.shape[:2])

    def recording(self, layer: int, sums: ExpertSums) -> AbstractContextManager[None]:
        """Inside, a layer's experts add what they do to `sums`: see `generic.routed`."""
        return recording(self._layers[layer], sums)

    def observing(self, layer: int, seen: Seen) -> AbstractContextManager[None]:
        """Inside, a layer's experts tell what they are given and give: see `generic.routed`."""
        return observing(self._layers[layer], seen)

    def gather(
        self,
        layer: int,
        tensors: ExpertwiseLayer,
        prefix: str,
        batches: Iterable[Tensor],
        room: Room,
        dtype: torch.dtype = torch.float32,
    ) -> GatheredLayer:
        """The layer with what its experts make of all micro-batches; each was read once.

        Args:
            layer: Its number.
            tensors: Its tensors.
            prefix: As of `run_layer`.
            batches: Its input, (b, n, d) each, in the order in which it will run.
            room: Where that is kept, and in which pieces it is computed.
            dtype: As of `run_layer`.

        Raises:
            NoRecord: its class does not ask for the experts of every token once.
        """
        self._at = layer
        with self._loaded(layer, tensors, prefix), self._computing_in(dtype):
            outputs = self._given_to_experts(layer, batches, room)
            with one_by_one(self._layers[layer]) as experts, operands_in(dtype, self._device):
                compute(experts, vars(experts)["forward"], outputs, room)
        return GatheredLayer(tensors, outputs)

    def _given_to_experts(self, layer: int, batches: Iterable[Tensor], room: Room) -> ExpertOutputs:
        """What a layer's experts are given, of all micro-batches."""
        outputs: ExpertOutputs | None = None

        def keep(tokens: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
            nonlocal outputs
            if outputs is None:
                outputs = new_outputs(room, tokens, chosen)
            outputs.add(tokens, chosen, gates)
            raise _Stopped(tokens)

        known = 0
        with asked(self._layers[layer], keep):
            for hidden in batches:
                self._run_stored(hidden)
                known += hidden.shape[0] * hidden.shape[1]
                if outputs is None or outputs.count != known:
                    raise NoRecord("its experts are not asked for every token once")
                room.safe_point()
        assert outputs is not None  # noqa: S101 - a pass has micro-batches
        return outputs

    @contextmanager
    def down_matrices(
        self, layer: int, tensors: Mapping[str, Tensor], prefix: str
    ) -> Iterator[DownMatrices]:
        """Inside, a layer has its weights, and its experts can be asked for what they do.

        Args:
            layer: Its number.
            tensors: As of `run_layer`.
            prefix: As of `run_layer`.

        Raises:
            NoRecord: its class says nothing of single experts.
        """
        with self._loaded(layer, tensors, prefix):
            yield DownMatrices(self._layers[layer])

    def masking(
        self, routers: Sequence[str], removed: Sequence[int]
    ) -> AbstractContextManager[object]:
        """Inside, tokens never choose the experts `removed`.

        Args:
            routers: Names in the files of matrices that score experts.
            removed: Experts.
        """
        return masking(lambda: [self._parameter(name) for name in routers], removed)

    def can_record(self, layer: int) -> bool:
        """Whether `recording` knows how the layer computes its experts."""
        return can_record(self._layers[layer])

    def run_whole(self, ids: Tensor, rows: Tensor, tokens: Tensor, whole: WholePass) -> Tensor:
        """What meets the head's matrix, (b, n, e), after one plain pass through the model.

        Args:
            ids: Of each token its place in `rows`, (b, n).
            rows: Rows of the embedding.
            tokens: Token ids, (b, n).
            whole: Where layers get their tensors, and what is kept.
        """
        self._head.forward = _stop
        self._whole = whole
        try:
            return _first_stream(self._run_tokens(ids, rows, tokens))
        finally:
            self._whole = None
            self._head.forward = self._forward_head

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter and stored buffer, by name."""
        return dict(self._shapes)

    def is_unseen(self, name: str) -> bool:
        """Whether a tensor of the files belongs to a tower that could not be built."""
        return self._names.parameter_of(name)[0].startswith(self._unseen)

    def not_needed(self) -> set[str]:
        """Names that files may lack: buffers, and what is another parameter by another name."""
        same: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            same.setdefault(id(parameter), []).append(name)
        keys = getattr(self._model, "all_tied_weights_keys", None) or {}
        tied = {name for names in same.values() for name in names[1:]} | set(keys)
        return tied | self._buffers

    @property
    def model(self) -> Any:
        """Transformers' model."""
        return self._model

    @property
    def names(self) -> ParameterNames:
        """How tensors in files become parameters."""
        return self._names

    def kinds(self) -> list[object]:
        """Of each layer something that is equal for layers that compute alike, but for widths."""
        types = getattr(self._model.config, "layer_types", None) or [None] * len(self._layers)
        return [
            (kind, tuple((path, type(module).__name__) for path, module in layer.named_modules()))
            for kind, layer in zip(types, self._layers, strict=True)
        ]

    def head_input(self, hidden: Tensor) -> Tensor:
        """What meets the head's matrix, (n, e), from the last layer's output (n, d).

        Each token is a sequence by itself: together they may be more than the model has positions.
        """
        self._at = len(self._layers)
        self._head.forward = _stop
        try:
            return _first_stream(self._run_stored(hidden[:, None]))[:, 0]
        finally:
            self._head.forward = self._forward_head

    def head_rule(self, hidden_size: int) -> HeadRule:
        """What becomes of the product with the head's matrix, measured.

        Raises:
            UnsupportedArchitecture: something else than a factor and a soft cap.
        """
        product = torch.linspace(-90.0, 90.0, 721, device=self._device)
        hidden = torch.zeros(1, 1, hidden_size, device=self._device)
        self._at = len(self._layers)
        self._head.forward = lambda given: product.expand(*given.shape[:-1], -1)
        self._hidden, self._beside = self._stored.load(hidden)
        try:
            output = self._forward(self._ids(hidden), self._no_rows())
        finally:
            self._head.forward = self._forward_head
        return _rule(product, output.logits[0, 0].float(), self._numbers)

    # ---- how -----------------------------------------------------------------------------------

    def pass_layer(
        self,
        number: int,
        forward: Callable[..., Any],
        given: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """What a layer does in the pass that is on: hand on, run, or end it."""
        if self._whole is not None:
            return self._pass_whole(self._whole, number, forward, given, options)
        if number < self._at:
            return self._as_returned(self._hidden)
        if number > self._at:
            raise _Stopped(self._stored.store(_hidden_of(given, options), self._beside))
        if given:
            given = (self._hidden, *given[1:])
        else:
            options = {**options, "hidden_states": self._hidden}
        if number > 0:
            given, options = self._stored.give(self._layers[number], given, options, self._beside)
        with operands_in(self._dtype, self._device):
            output = forward(*given, **options)
        check_residual(self._of_returned(output))
        self._stored.keep(options, output, self._beside)
        if number == len(self._layers) - 1:
            raise _Stopped(self._stored.store(self._of_returned(output), self._beside))
        return output

    def _pass_whole(
        self,
        whole: WholePass,
        number: int,
        forward: Callable[..., Any],
        given: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        hidden = _hidden_of(given, options)
        if whole.only is not None and number not in whole.only:
            return self._as_returned(hidden, self._beside.handed)
        whole.inputs[number] = self._stored.store(hidden, self._beside)
        with self._loaded(number, *whole.read(number)):
            output = forward(*given, **options)
        self._stored.keep(options, output, self._beside)
        whole.outputs[number] = self._stored.store(self._of_returned(output), self._beside)
        return output

    def _run_tokens(self, ids: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """A pass over tokens, whose ids are places in `rows`."""
        self._beside = Beside()
        if not self._stored.with_tokens:
            return self._run(*self._without_padding(ids, rows))
        self._beside = Beside(ids=tokens, rows=nn.functional.embedding(ids, rows))
        return self._run(tokens, rows)

    def _run_stored(self, stored: Tensor) -> Tensor:
        """A pass that takes what was stored between two layers, (b, n, d)."""
        self._hidden, self._beside = self._stored.load(stored)
        return self._run(self._ids(stored), self._no_rows())

    def _run(self, ids: Tensor, rows: Tensor) -> Tensor:
        try:
            self._forward(ids, rows)
        except _Stopped as stopped:
            return stopped.value
        finally:
            self._hidden, self._beside, self._cache = None, Beside(), None
        raise RuntimeError("the model's forward pass did not come to its layers")

    def _forward(self, ids: Tensor, rows: Tensor) -> Any:
        """A pass over token ids; the embedding's table holds these tokens alone.

        Where layers need the ids themselves, these are no places in the table: it gets one row for
        each token, in their order.
        """
        handles = []
        found = self._beside.rows
        if self._beside.ids is not None:
            rows = rows if found is None else found.flatten(0, 1)
            places = torch.arange(ids.numel(), device=self._device).view_as(ids)
            if found is None:
                places = places.clamp(max=len(rows) - 1)
            handles.append(self._embedding.register_forward_pre_hook(_Replace(places)))
            missing = (self._padding or 0) + 1 - len(rows)
            if missing > 0:  # Some classes look up the padding's row.
                rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[-1])])
        self._embedding.weight = nn.Parameter(rows, requires_grad=False)
        options = {} if self._cache is None else {"past_key_values": self._cache}
        try:
            return self._model(input_ids=ids, use_cache=self._cache is not None, **options)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, operands of matrix products in layers are of this dtype."""
        before, self._dtype = self._dtype, dtype
        try:
            yield
        finally:
            self._dtype = before

    def _module_of(self, name: str) -> nn.Module:
        """The module that holds a tensor of the files."""
        parameter, _ = self._names.parameter_of(name)
        module: nn.Module = self._model.get_submodule(parameter.rpartition(".")[0])
        return module

    def _parameter(self, name: str) -> Tensor:
        """The parameter that a tensor of the files became."""
        parameter, _ = self._names.parameter_of(name)
        value = self._module_of(name)._parameters[parameter.rpartition(".")[2]]
        assert value is not None  # noqa: S101 - the files hold it
        return value

    def _is_text(self, name: str) -> bool:
        """Whether a tensor outside the layers belongs to the decoder or its head.

        What sees images or hears sound lies beside the decoder, and has no part in a text.
        """
        return is_text(self._names.parameter_of(name)[0])

    def _without_padding(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids other than the padding's, and their rows: some classes count no positions there."""
        if self._padding is None or self._padding >= len(rows):
            return ids, rows
        free = rows.new_zeros(1, rows.shape[-1])
        rows = torch.cat([rows[: self._padding], free, rows[self._padding :]])
        return ids + (ids >= self._padding), rows

    def _ids(self, stored: Tensor) -> Tensor:
        """Token ids for a pass that takes stored hidden states: any, where none are stored."""
        if self._beside.ids is not None:
            return self._beside.ids
        return torch.full(stored.shape[:2], _ID, device=self._device)

    def _no_rows(self) -> Tensor:
        width = self._shapes_of_embedding()
        return torch.zeros(_ID + 1, width, device=self._device)

    def _shapes_of_embedding(self) -> int:
        return int(self._embedding.embedding_dim)

    def _as_returned(self, hidden: Tensor | None, handed: Tensor | None = None) -> Any:
        """What a layer would return that hands on what it is given."""
        if isinstance(self._returns, str):
            return hidden
        place = None if self._handed is None else self._handed.place
        return tuple(
            hidden if each == "hidden" else handed if number == place else None
            for number, each in enumerate(self._returns)
        )

    def _of_returned(self, output: Any) -> Tensor:
        hidden: Tensor = output
        if isinstance(output, tuple | list):
            hidden = output[self._returns.index("hidden")]
        return hidden

    @contextmanager
    def _loaded(self, layer: int, tensors: LayerWeights, prefix: str) -> Iterator[None]:
        """Inside, a layer has its weights, or reads those of each expert when they are used."""
        try:
            if not isinstance(tensors, ExpertwiseLayer):
                self._set(self._made(tensors, prefix))
                yield
                return
            self._set(self._made(tensors.resident, prefix))
            if isinstance(tensors, GatheredLayer):
                with asked(self._layers[layer], tensors.outputs.answer):
                    yield
                return
            with one_by_one(self._layers[layer]) as experts:
                self._stand_in(experts, tensors, prefix)
                yield
        finally:
            self._clear(layer)

    def _stand_in(self, experts: nn.Module, tensors: ExpertwiseLayer, prefix: str) -> None:
        """Replace parameters of a layer's experts by what reads one expert's part of them."""
        described = tensors.experts
        parts: dict[str, list[str]] = {}
        for role in (*described.own, *(name for name, _ in described.sliced)):
            parameter, _ = self._names.parameter_of(prefix + role.format(0))
            parts.setdefault(parameter, []).append(role)
        for parameter, roles in parts.items():
            path, _, attribute = parameter.rpartition(".")
            if self._model.get_submodule(path) is not experts:
                raise NoRecord("its matrices are not in the module that computes with them")
            dense, *one = self._shapes[parameter]
            # Some rules of loading compare its shape with what they are given: of one expert.
            empty = torch.empty(1, *one, device="meta")
            experts._parameters[attribute] = nn.Parameter(empty, requires_grad=False)
            read = _ExpertReader(self._names, parameter, roles, tensors, prefix)
            matrices = ExpertMatrices(described.count, _Hiding(experts, attribute, read))
            vars(experts)[attribute] = matrices
            self._undo.append(_Forget(experts, attribute))
            if dense != described.count:
                self._tell(path, {dense: described.count})

    def _made(self, tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
        """The parameters that a layer's tensors become."""
        if isinstance(tensors, LayerTensors) and tensors.parameters is not None:
            return tensors.parameters
        full = {prefix + name: tensor for name, tensor in tensors.items()}
        for name, tensor in full.items():
            self._expect_experts(name, tensor)
        made = self._names.parameters(full)
        if isinstance(tensors, LayerTensors):
            tensors.parameters = made
        return made

    def _expect_experts(self, name: str, tensor: Tensor) -> None:
        """Let a parameter of all experts have as many as a tensor of the files.

        Some rules of loading compare the shapes: to them, another number means another layout.
        """
        parameter, pattern = self._names.parameter_of(name)
        shape = self._shapes.get(parameter)
        if pattern is None or shape is None or len(shape) < 3 or tensor.dim() != len(shape):
            return
        if tensor.shape[0] != shape[0]:
            path, _, attribute = parameter.rpartition(".")
            empty = torch.empty(tensor.shape[0], *shape[1:], device="meta")
            module = self._model.get_submodule(path)
            module._parameters[attribute] = nn.Parameter(empty, requires_grad=False)

    def _set(self, parameters: Mapping[str, Tensor]) -> None:
        """Give parameters their values. Where one is narrower, its modules are told."""
        for name, value in parameters.items():
            path, _, attribute = name.rpartition(".")
            module = self._model.get_submodule(path)
            if attribute in module._parameters:
                module._parameters[attribute] = value
            else:
                setattr(module, attribute, value.to(self._device))
            dense = self._shapes.get(name)
            if dense is not None and dense != tuple(value.shape):
                sizes = zip(dense, value.shape, strict=True)
                self._tell(path, {old: new for old, new in sizes if old != new})

    def _tell(self, path: str, sizes: dict[int, int]) -> None:
        """Replace sizes among the attributes of a module and of the one around it.

        A number of experts is told from a width of the same size by the attribute's name.
        """
        for each in (path, path.rpartition(".")[0]):
            module = self._model.get_submodule(each)
            if module in self._layers:
                return
            for key, value in list(vars(module).items()):
                counts_experts = value == self._experts
                if (
                    type(value) is int
                    and value in sizes
                    and "hidden_size" not in key
                    and key.endswith("experts") == counts_experts
                ):
                    self._undo.append(_Reset(module, key, value))
                    setattr(module, key, sizes[value])

    def _clear(self, layer: int) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        # Shapes stay: some rules of loading compare them with those of the files.
        for path, module in self._layers[layer].named_modules(prefix=f"{self._path}.{layer}"):
            for name in module._parameters:
                if module._parameters[name] is not None:
                    empty = torch.empty(self._shapes[f"{path}.{name}"], device="meta")
                    module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _say_device(model: Any, device: torch.device) -> None:
    """Tell parts of a model where they compute, if their first parameter has no memory.

    transformers asks a model's first parameter; where images come first, that is not loaded.
    """
    for module in model.modules():
        first = next((name for name, _ in module.named_parameters()), "")
        if isinstance(module, PreTrainedModel) and not is_text(first):
            plain = type(module)
            names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
            module.__class__ = type(
                plain.__name__, (plain,), {**names, "device": property(lambda _: device)}
            )


class _Layer:
    """Stands in for the `forward` of a decoder layer."""

    def __init__(self, modules: Modules, number: int, forward: Callable[..., Any]) -> None:
        self._modules, self._number, self._forward = modules, number, forward

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._modules.pass_layer(self._number, self._forward, given, options)


class _ExpertReader:
    """Reads an expert's part of a parameter, as `ParameterNames` makes it of the files' tensors."""

    def __init__(
        self,
        names: ParameterNames,
        parameter: str,
        roles: Sequence[str],
        tensors: ExpertwiseLayer,
        prefix: str,
    ) -> None:
        self._names, self._parameter, self._roles = names, parameter, roles
        self._tensors, self._prefix = tensors, prefix

    def __call__(self, expert: int) -> Tensor:
        parts = (self._tensors.of_expert(role, expert) for role in self._roles)
        made = self._names.parameters({self._prefix + name: part for name, part in parts})
        return made[self._parameter][0]


class _Hiding:
    """Calls a reader while a module has its parameter again, at which rules of loading look."""

    def __init__(self, module: nn.Module, attribute: str, read: Callable[[int], Tensor]) -> None:
        self._module, self._attribute, self._read = module, attribute, read

    def __call__(self, expert: int) -> Tensor:
        attributes = vars(self._module)
        stand_in = attributes.pop(self._attribute)
        try:
            return self._read(expert)
        finally:
            attributes[self._attribute] = stand_in


class _Forget:
    """Takes an attribute from a module."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self._module, self._attribute = module, attribute

    def __call__(self) -> None:
        del vars(self._module)[self._attribute]


class _KeepInput:
    """Keeps what a module is given, one row per token."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self._kept, self._name = kept, name

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._kept[self._name] = given[0].reshape(-1, given[0].shape[-1])


class _KeepOutput:
    """Keeps what a module gives; what goes on is a copy, which may be changed in place."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self._kept, self._name = kept, name

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._kept[self._name] = output
        return output.clone()


class _Replace:
    """Replaces what a module is given."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self._value,)


def _stop(given: Tensor) -> Tensor:
    raise _Stopped(given)


class _Reset:
    """Gives a module's attribute its value back."""

    def __init__(self, module: nn.Module, key: str, value: int) -> None:
        self._module, self._key, self._value = module, key, value

    def __call__(self) -> None:
        setattr(self._module, self._key, self._value)


def _first_stream(met: Tensor) -> Tensor:
    """What meets the head's matrix, (b, n, e): of several streams the one for the next token."""
    return met[:, 0] if met.dim() == 4 else met


def _hidden_of(given: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    hidden: Tensor = given[0] if given else options["hidden_states"]
    return hidden


def dense_model(raw: Mapping[str, Any]) -> Any:
    """The model of a config.json, dense also where that is of a pruned checkpoint."""
    model_type = family_of(str(raw["model_type"]))
    own = {key: value for key, value in safe_config(raw).items() if key != "strucprune"}
    config = CONFIG_MAPPING[model_type].from_dict({**own, "model_type": model_type})
    return model_of(config)


def safe_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without the keys that could make transformers fetch or run other code.

    Without keys that only ask for further results as well.
    """
    return {
        key: _value(value)
        for key, value in raw.items()
        if key not in (*_CODE_KEYS, *_RESULT_KEYS) and not key.startswith("_")
    }


def _value(value: Any) -> Any:
    """A value of config.json; JSON has no infinity, so transformers writes `{"__float__": ...}`."""
    if isinstance(value, list):
        return [_value(each) for each in value]
    if not isinstance(value, dict):
        return value
    return float(value[_FLOAT]) if set(value) == {_FLOAT} else safe_config(value)


def model_of(config: Any) -> Any:
    """The language model of a config, or the model that sees images as well."""
    whole = "text_config" in config.sub_configs or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    sees = whole and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with towers_may_lack():
        return auto.from_config(config, dtype=torch.float32)


def _rule(product: Tensor, found: Tensor, numbers: list[float]) -> HeadRule:
    """The factor and soft cap that make `found` of `product`.

    A cap is a number of config.json, `numbers`: measured alone, it would be known to six digits.
    """
    middle, edge = len(product) // 2, float(product[-1])
    rise = float(found[middle + 1] - found[middle - 1])
    scale = rise / float(product[middle + 1] - product[middle - 1])
    if torch.allclose(scale * product, found, rtol=1e-5, atol=1e-5):
        return HeadRule(float(found[-1]) / edge, None)
    for cap in numbers:
        # The slope at 0 is `scale` whatever the cap.
        if cap > 0 and torch.allclose(
            cap * torch.tanh(scale * product / cap), found, rtol=1e-3, atol=1e-3
        ):
            return HeadRule(1.0 if abs(scale - 1.0) < 1e-3 else scale, cap)
    raise UnsupportedArchitecture(
        "the model changes its logits by more than a factor and a soft cap",
        field=FIELD,
        remedy="Give a model of another architecture.",
    )
