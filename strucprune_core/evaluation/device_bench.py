"""Measures the parts of forward passes on this machine: `strucprune bench-device`.

Parts are timed in transformers' modules of a Llama, as both models' speed is (`evaluation.speed`).
Of a product, that is a linear module. Of everything else, it is a module whose linear modules hand
out prepared tensors at once: so what is left is measured, not computed as a difference.

    products     Linear(in, out)
    layer        LlamaDecoderLayer with both blocks prepared: norms, additions, calls
    activation   LlamaMLP with its matrices prepared
    attention    LlamaAttention with its matrices prepared: rotation, the KV cache, reading it
    model        LlamaForCausalLM with one prepared layer: embedding, masks, last norm, choice

In a model, each matrix is read from memory: all others were used since its last use. So matrices
are views of a buffer that is larger than caches, each one at another place.

All parts are measured once in each round, so that what else the machine does for a while falls on
all of them. The table has the medians of the rounds. With one thread on a CPU, time is that of the
thread on the processor: what else runs then costs it caches and memory alone.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.devices import choose_device, device_name
from strucprune_core.plan.device_table import DeviceTable, PassTimes
from strucprune_core.spec import is_gpu

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SEQUENCES = (1, 8)
PROMPT_TOKENS = 512
CONTEXTS = (16, 512, 4096, 16384)
GROUPS = (1, 2, 4, 16)
HEAD_DIM = 64
_SMALL_WIDTHS = (16, 64, 256)
# Larger than the caches of any processor, and than those of accelerators.
_BUFFER_BYTES = 1 << 28
_LOGITS = 32768
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 31
# Calls of a part in a round: until this long, or so many.
_CALLS_SECONDS, _MOST_CALLS = 1e-3, 8
_WARM_UP_CALLS = 1
# Numbers in a KV cache that is measured, keys and values; larger ones take too long.
_MOST_CACHED = 1 << 25


@dataclass(frozen=True)
class Setup:
    """What is measured, and on what.

    Attributes:
        device: "cpu", "cuda" or "cuda:1".
        dtype: As in `DTYPES`.
        threads: Of torch.
        largest: The largest hidden size; FFNs and heads may be four times as wide.
        seconds: About how long.
    """

    device: str
    dtype: str
    threads: int
    largest: int
    seconds: float


def check_setup(setup: Setup) -> None:
    """Check that such a table can be measured here.

    Raises:
        InvalidSpec: there is no such device, or a size is none that can be measured.
    """
    if setup.device == "auto":
        raise InvalidSpec(
            "a table is of one device", field="--device", remedy="Use cpu, cuda or cuda:1."
        )
    choose_device(setup.device, "--device")
    if setup.dtype not in DTYPES:
        raise InvalidSpec(
            f"'{setup.dtype}' is no dtype",
            field="--dtype",
            remedy=f"Use one of {', '.join(DTYPES)}.",
        )


def widths_up_to(largest: int) -> tuple[int, ...]:
    """Widths that are measured: powers of two from 512 on, to four times the largest."""
    widths = [*_SMALL_WIDTHS, 512]
    while widths[-1] < 4 * largest:
        widths.append(2 * widths[-1])
    return tuple(widths)


class _Prepared(nn.Module):
    """Hands out a tensor, whatever it is given."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self._out = out

    def forward(self, *given: Any, **more: Any) -> Any:
        return self._out


@dataclass(frozen=True)
class _Shape:
    """One kind of pass."""

    sequences: int
    tokens: int


_Place = tuple[str, int, tuple[int, ...]]
"""A part, the number of its pass, and where in the table's array it is."""


class _Bench:
    """Makes parts and times them.

    Args:
        setup: What is measured.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self._dtype = setup, DTYPES[setup.dtype]
        self._device = torch.device(setup.device)
        self.widths = widths_up_to(setup.largest)
        self.shapes = [*(_Shape(each, 1) for each in SEQUENCES), _Shape(1, PROMPT_TOKENS)]
        size = max(_BUFFER_BYTES // self._dtype.itemsize, 4 * setup.largest**2)
        generator = torch.Generator().manual_seed(0)
        # Repeated, since a whole buffer of random numbers takes longer than much of the rest.
        numbers = torch.randn(1 << 20, generator=generator).mul_(0.02).to(self._dtype)
        self._buffer = numbers.repeat(-(-size // numbers.numel()))[:size].to(self._device)
        self._offset = 0
        alone = setup.device == "cpu" and setup.threads == 1
        self._now = time.thread_time if alone else time.perf_counter

    def contexts(self, shape: _Shape) -> tuple[int, ...]:
        """Tokens in the KV cache before a pass."""
        return CONTEXTS if shape.tokens == 1 else (0,)

    def places(self) -> list[_Place]:
        """Everything that is measured."""
        return [place for number in range(len(self.shapes)) for place in self._of_pass(number)]

    def _of_pass(self, number: int) -> Iterator[_Place]:
        largest = self._setup.largest
        shape = self.shapes[number]
        for i, width in enumerate(self.widths):
            for j, outputs in enumerate(self.widths):
                if min(width, outputs) <= largest:
                    yield "products", number, (i, j)
            yield "activation", number, (i,)
            if width > largest:
                continue
            yield "layer", number, (i,)
            yield "model", number, (i,)
            for k, context in enumerate(self.contexts(shape)):
                for g, group in enumerate(GROUPS):
                    cached = 2 * shape.sequences * context * width
                    if cached <= _MOST_CACHED and width * group <= 2 * largest:
                        yield "attention", number, (k, i, g)

    def _view(self, *shape: int) -> torch.Tensor:
        """A tensor at the next place of the buffer."""
        size = int(np.prod(shape))
        if self._offset + size > self._buffer.numel():
            self._offset = 0
        view = self._buffer[self._offset : self._offset + size].view(shape)
        self._offset += -(-size // 64) * 64
        return view

    @torch.inference_mode()
    def seconds(self, place: _Place) -> float:
        """Seconds of one call of a part."""
        part, number, index = place
        make: Callable[..., Callable[[], object]] = getattr(self, f"_{part}")
        call = make(self.shapes[number], *index)
        for _ in range(_WARM_UP_CALLS):
            call()
        self._synchronise()
        began = self._now()
        for done in count(1):
            call()
            if done == _MOST_CALLS or self._now() - began > _CALLS_SECONDS:
                break
        self._synchronise()
        return (self._now() - began) / done

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _products(self, shape: _Shape, i: int, j: int) -> Callable[[], object]:
        inputs, outputs = self.widths[i], self.widths[j]
        given = self._view(shape.sequences, shape.tokens, inputs)
        matrices = iter([self._linear(inputs, outputs) for _ in range(_MOST_CALLS + 1)])
        return lambda: next(matrices)(given)

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        matrix = nn.Linear(inputs, outputs, bias=False, device="meta")
        matrix.weight = nn.Parameter(self._view(outputs, inputs), requires_grad=False)
        return matrix

    def _config(self, **changes: Any) -> Any:
        small = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "num_hidden_layers": 1,
            "vocab_size": 128,
        }
        config = transformers.LlamaConfig(**{**small, **changes})
        config._attn_implementation = "sdpa"
        return config

    def _placed(self, module: nn.Module) -> nn.Module:
        return module.to(device=self._device, dtype=self._dtype).eval()

    def _layer(self, shape: _Shape, i: int) -> Callable[[], object]:
        width = self.widths[i]
        states = self._view(shape.sequences, shape.tokens, width)
        layer = _llama().LlamaDecoderLayer(self._config(hidden_size=width, head_dim=16), 0)
        layer.self_attn = _Prepared((states, None))
        layer.mlp = _Prepared(states)
        layer = self._placed(layer)
        return lambda: layer(states)

    def _activation(self, shape: _Shape, i: int) -> Callable[[], object]:
        inner = self._view(shape.sequences, shape.tokens, self.widths[i])
        outer = self._view(shape.sequences, shape.tokens, 16)
        feed_forward = _llama().LlamaMLP(self._config())
        feed_forward.gate_proj = _Prepared(inner)
        feed_forward.up_proj = _Prepared(self._view(*inner.shape))
        feed_forward.down_proj = _Prepared(outer)
        return lambda: feed_forward(outer)

    def _attention(self, shape: _Shape, k: int, i: int, g: int) -> Callable[[], object]:
        keys, group, context = self.widths[i], GROUPS[g], self.contexts(shape)[k]
        dim = min(HEAD_DIM, keys)
        heads = keys // dim
        config = self._config(
            hidden_size=group * keys,
            num_attention_heads=group * heads,
            num_key_value_heads=heads,
            head_dim=dim,
        )
        with torch.device("meta"):  # Its matrices are replaced.
            module = _llama().LlamaAttention(config, 0)
        sizes = (shape.sequences, shape.tokens)
        module.q_proj = _Prepared(self._view(*sizes, group * keys))
        module.k_proj = _Prepared(self._view(*sizes, keys))
        module.v_proj = _Prepared(self._view(*sizes, keys))
        states = self._view(*sizes, 16)
        module.o_proj = _Prepared(states)
        module.eval()
        angles = self._view(1, shape.tokens, dim), self._view(1, shape.tokens, dim)
        cached = [self._view(shape.sequences, heads, context, dim) for _ in range(2)]

        def call() -> None:
            cache = transformers.DynamicCache(config=config)
            if context:
                layer = cache.layers[0]
                layer.lazy_initialization(cached[0], cached[1])
                layer.keys, layer.values = cached
            module(states, position_embeddings=angles, past_key_values=cache)

        return call

    def _model(self, shape: _Shape, i: int) -> Callable[[], object]:
        width = self.widths[i]
        config = self._config(hidden_size=width)
        states = self._view(shape.sequences, shape.tokens, width)
        model = transformers.LlamaForCausalLM(config)
        model.model.layers[0] = _Prepared(states)
        model.lm_head = _Prepared(self._view(shape.sequences, 1, _LOGITS))
        model = self._placed(model)
        ids = torch.zeros(shape.sequences, shape.tokens, dtype=torch.long, device=self._device)

        def call() -> torch.Tensor:
            out = model(ids, use_cache=True, logits_to_keep=1)
            return torch.as_tensor(out.logits[:, -1:].argmax(-1))

        return call


def _llama() -> Any:
    from transformers.models.llama import modeling_llama

    return modeling_llama


def measure(setup: Setup, tick: Callable[[float], None] = lambda share: None) -> DeviceTable:
    """Measure a table on this machine.

    Args:
        setup: What is measured.
        tick: Told the share of the time that has passed.

    Raises:
        InvalidSpec: see `check_setup`.
    """
    check_setup(setup)
    before = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    try:
        bench = _Bench(setup)
        return _table(setup, bench, _rounds(setup, bench, tick))
    finally:
        torch.set_num_threads(before)


def _rounds(setup: Setup, bench: _Bench, tick: Callable[[float], None]) -> NDArray[np.float64]:
    """Seconds (rounds x places); the first round warms up and is left out."""
    places, began = bench.places(), time.monotonic()
    found: list[list[float]] = []
    while len(found) <= _MOST_ROUNDS:
        row = []
        for number, place in enumerate(places):
            row.append(bench.seconds(place))
            passed = (time.monotonic() - began) / setup.seconds
            least = (len(found) + number / len(places)) / (_LEAST_ROUNDS + 1)
            tick(min(passed, least, 1.0))
        found.append(row)
        each = (time.monotonic() - began) / len(found)
        enough = len(found) > _LEAST_ROUNDS
        if enough and time.monotonic() - began + each > setup.seconds:
            break
    tick(1.0)
    return np.array(found[1:])


def _table(setup: Setup, bench: _Bench, rounds: NDArray[np.float64]) -> DeviceTable:
    low, middle, high = np.quantile(rounds, (0.25, 0.5, 0.75), axis=0)
    times = [_empty(bench, shape) for shape in bench.shapes]
    for (part, number, index), seconds in zip(bench.places(), middle, strict=True):
        times[number][part][index] = seconds
    passes = [
        PassTimes(
            sequences=shape.sequences,
            tokens=shape.tokens,
            contexts=bench.contexts(shape),
            **{part: _listed(array) for part, array in arrays.items()},
        )
        for shape, arrays in zip(bench.shapes, times, strict=True)
    ]
    return DeviceTable(
        device=device_name(torch.device(setup.device)),
        kind="cuda" if is_gpu(setup.device) else "cpu",
        threads=setup.threads,
        dtype=setup.dtype,
        runtime=f"transformers {transformers.__version__}, torch {torch.__version__}",
        measured_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
        rounds=len(rounds),
        spread=round(float(np.median((high - low) / (2 * middle))), 4),
        widths=bench.widths,
        groups=GROUPS,
        decode=[each for each in passes if each.tokens == 1],
        prefill=[each for each in passes if each.tokens > 1],
    )


def _empty(bench: _Bench, shape: _Shape) -> dict[str, NDArray[np.float64]]:
    widths = len(bench.widths)
    sizes: dict[str, tuple[int, ...]] = {
        "products": (widths, widths),
        "layer": (widths,),
        "activation": (widths,),
        "attention": (len(bench.contexts(shape)), widths, len(GROUPS)),
        "model": (widths,),
    }
    return {part: np.full(size, np.nan) for part, size in sizes.items()}


def _listed(array: NDArray[np.float64]) -> Any:
    """Nested lists; null where nothing was measured. Four digits: more is noise."""
    if array.ndim > 1:
        return [_listed(each) for each in array]
    return [None if np.isnan(each) else float(f"{each:.4g}") for each in array]
