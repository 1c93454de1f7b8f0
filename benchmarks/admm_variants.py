"""Does ADMM choose better channels than OBS? And what does recovery gain? On calibration text only.

    make model
    .venv/bin/python benchmarks/admm_variants.py --calibration CALIBRATION.txt --work /tmp/admm

Per layer of SmolLM2-135M: statistics on 30 sequences of 512 tokens; 2 more sequences decide what is
accepted (as in a job), and 8 more, which decide nothing, give the errors printed here. Statistics
are kept in `--work` and used again. Our figures are for the validation split of WikiText-2 in its
tokenised form, with its `<unk>` marks deleted.

Parts: `variants` (every setting of ADMM at one sparsity), `supports` (OBS by block size and
damping, better settings of ADMM, exchanges) and `recovery`. `--damping` is that of the objective
by which supports are chosen (OBS's own if not given); weights always come from the ridge with the
damping that a job would use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.swaps import swap_groups
from strucprune_core.calibration.text import Text, calibration_windows
from strucprune_core.calibration.tokenizer import load_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.method.gram import GramAccumulator, token_weights
from strucprune_core.method.layer.admm import AdmmOptions, Ranking, RhoRule, admm, choose_support
from strucprune_core.method.layer.damage_curve import HESSIAN_DAMPING, damage_curve
from strucprune_core.method.layer.fixed_support import LayerProblem
from strucprune_core.method.layer.ridge import default_damping, relative_error, ridge
from strucprune_core.method.linalg.matrices import Room
from strucprune_core.method.training.recovery import (
    RecoveryOptions,
    Tokens,
    held_out_error,
    recover,
)
from strucprune_core.models.families import parse_config
from strucprune_core.models.forward import micro_batches
from strucprune_core.models.norms import normalise
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.structures import SiteKind
from strucprune_core.models.vocabulary import embed
from strucprune_core.storage.open import open_store

FFN: tuple[SiteKind, ...] = ("ffn",)

TRAIN, CHOOSE, TEST, LENGTH = 30, 2, 8, 512  # Sequences, and tokens of each.
DAMPING = default_damping(TRAIN * LENGTH)
ROLES = {"gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}
NORM = "post_attention_layernorm"


def _known(error: float | None) -> float:
    """An error on tokens that are there."""
    if error is None:
        raise ValueError("no held-out tokens")
    return error


@dataclass(frozen=True)
class Layer:
    """A layer's statistics and tokens; `rows(name)` are slices of the token axis."""

    gram: Tensor
    weights: dict[str, Tensor]
    inputs: np.typing.NDArray[np.float32]
    token_weights: np.typing.NDArray[np.float32]

    @property
    def down(self) -> Tensor:
        """W0, (d x f)."""
        return self.weights["down"]

    def activations(self, part: slice) -> Tensor:
        """Token-weighted activations, (n x f)."""
        hidden = _activations(torch.from_numpy(self.inputs[part]), self.weights)
        return hidden * torch.from_numpy(self.token_weights[part]).sqrt()[:, None]

    def tokens(self, part: slice) -> Tokens:
        """What recovery trains on."""
        inputs = self.inputs[part]
        targets = _ffn(torch.from_numpy(inputs), self.weights).numpy()
        return Tokens(inputs, targets, self.token_weights[part])


TRAIN_ROWS = slice(0, TRAIN * LENGTH)
CHOOSE_ROWS = slice(TRAIN * LENGTH, (TRAIN + CHOOSE) * LENGTH)
TEST_ROWS = slice((TRAIN + CHOOSE) * LENGTH, None)


@dataclass(frozen=True)
class Outcome:
    """One method on one layer, against OBS in blocks of 16 with the same ridge.

    Attributes:
        method: Name.
        layer: Index.
        sparsity: Share of channels removed.
        train: Relative change of the regularised objective on the statistics.
        test: Relative change of the test error.
        last: The same for ADMM's last support instead of the best one it saw.
        guarded: As `test`, with the baseline where the choosing tokens prefer it.
        test_error: Relative error itself.
        iterations: Of ADMM, or supports evaluated.
        status: How ADMM ended.
        seconds: To find the support, without statistics and the curve.
    """

    method: str
    layer: int
    sparsity: float
    train: float
    test: float
    last: float
    guarded: float
    test_error: float
    iterations: int
    status: str
    seconds: float


def main() -> int:
    """Run the parts asked for; print tables, write all outcomes to WORK/PART.json."""
    options = _parse(sys.argv[1:])
    options.work.mkdir(parents=True, exist_ok=True)
    _collect(options)
    for part in options.parts:
        rows = _PARTS[part](options)
        (options.work / f"{part}.json").write_text(json.dumps(rows, indent=1))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=".cache/models/smollm2-135m")
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 5, 10, 15, 20, 25, 29])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.3, 0.5])
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=list(_PARTS))
    parser.add_argument(
        "--damping",
        type=float,
        default=HESSIAN_DAMPING,
        help="of the objective that supports are chosen by; the ridge has its own",
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[80, 150])
    parser.add_argument("--max-iterations", type=int, default=40)
    parser.add_argument("--delete-mark", default="<unk>", help="deleted from the calibration text")
    return parser.parse_args(arguments)


# --- Statistics -----------------------------------------------------------------------------------


@torch.inference_mode()
def _collect(options: argparse.Namespace) -> None:
    """One dense pass; keep what the wanted layers need."""
    wanted = {layer for layer in options.layers if not _file(options, layer).exists()}
    if not wanted:
        return
    index = open_checkpoint(open_store(str(options.model)))
    config = parse_config(index.config)
    stream = ModelStream(config, TensorReader(index), torch.device("cpu"))
    text = options.work / "calibration.txt"
    raw = options.calibration.read_text(encoding="utf-8")
    text.write_text(raw.replace(options.delete_mark, ""), encoding="utf-8")
    windows = calibration_windows(
        Text(open_store(str(options.work)), text.name, "calibration"),
        load_tokenizer(bytes(index.store.read(TOKENIZER)), config.vocab_size),
        TRAIN + CHOOSE + TEST,
        LENGTH,
        seed=0,
    )
    d = config.hidden_size
    hidden = np.empty((*windows.shape, d), dtype=np.float32)
    embed(stream, windows, hidden)
    for layer in range(max(wanted) + 1):
        weights = stream.layer(layer)
        width = config.intermediate_sizes[layer]
        gram, total_weight = GramAccumulator(width, Room(stream.device)), 0.0
        inputs, scales = [], []
        for batch in micro_batches(len(windows), LENGTH, 2 * LENGTH):
            trace = stream.run_layer(layer, weights, hidden[batch], record=FFN)
            hidden[batch] = trace.hidden.numpy()
            if layer in wanted:
                outputs = trace.hidden.reshape(-1, d)
                activations = trace.inputs["ffn"].rows
                per_token = token_weights(outputs)
                if batch.stop <= TRAIN:
                    gram.add(activations, per_token)
                    total_weight += float(per_token.sum(dtype=torch.float64))
                before = outputs - activations @ weights[ROLES["down"]].T
                inputs.append(normalise(config.norm, before, weights, NORM).numpy())
                scales.append(per_token.numpy())
        if layer in wanted:
            scale = np.concatenate(scales)
            arrays = {name: weights[role].numpy() for name, role in ROLES.items()}
            arrays["gram"] = gram.gram(total_weight).numpy()
            arrays["inputs"] = np.concatenate(inputs)
            arrays["token_weights"] = scale / scale[TRAIN_ROWS].mean()
            np.savez(_file(options, layer), allow_pickle=False, **arrays)
            print(f"layer {layer} collected", flush=True)


def _file(options: argparse.Namespace, layer: int) -> Path:
    path: Path = options.work / f"layer{layer}.npz"
    return path


def _load(options: argparse.Namespace, layer: int) -> Layer:
    with np.load(_file(options, layer)) as arrays:
        weights = {name: torch.from_numpy(arrays[name]) for name in ROLES}
        gram = torch.from_numpy(arrays["gram"])
        return Layer(gram, weights, arrays["inputs"], arrays["token_weights"])


def _activations(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return functional.silu(x @ weights["gate"].T) * (x @ weights["up"].T)


def _ffn(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return _activations(x, weights) @ weights["down"].T


# --- Supports -------------------------------------------------------------------------------------


class Bench:
    """One layer at one sparsity: the OBS baseline, and others measured against it."""

    def __init__(
        self, number: int, layer: Layer, sparsity: float, order: Tensor, damping: float
    ) -> None:
        self.number, self.layer, self.sparsity = number, layer, sparsity
        self.damping = damping
        self.keep = len(order) - round(sparsity * len(order))
        self.obs = self.kept(order)
        self.problem = LayerProblem.of(layer.gram, layer.down, damping)
        self._choosing = layer.activations(CHOOSE_ROWS)
        self._testing = layer.activations(TEST_ROWS)
        self._baseline = self.test_error(self.obs)

    def kept(self, order: Tensor) -> Tensor:
        """What is left of an order of removal, ascending."""
        return order[len(order) - self.keep :].sort().values

    def test_error(self, kept: Tensor) -> float:
        """Of the repaired layer, on tokens that decide nothing."""
        weight = ridge(self.layer.gram, self.layer.down, kept, DAMPING).weight.float()
        return _known(relative_error(self._testing, self.layer.down, weight, kept))

    def outcome(
        self,
        method: str,
        kept: Tensor,
        seconds: float,
        *,
        last: Tensor | None = None,
        iterations: int = 0,
        status: str = "",
    ) -> Outcome:
        """Compare a support with OBS."""
        layer = self.layer
        choice = choose_support(layer.gram, layer.down, self.obs, kept, DAMPING, self._choosing)
        error = self._baseline if torch.equal(kept, self.obs) else self.test_error(kept)
        same = last is None or torch.equal(last, kept)
        last_error = error if same or last is None else self.test_error(last)
        return Outcome(
            method=method,
            layer=self.number,
            sparsity=self.sparsity,
            train=self.problem.error(kept) / self.problem.error(self.obs) - 1.0,
            test=error / self._baseline - 1.0,
            last=last_error / self._baseline - 1.0,
            guarded=error / self._baseline - 1.0 if choice.taken == "candidate" else 0.0,
            test_error=error,
            iterations=iterations,
            status=status,
            seconds=seconds,
        )

    def admm(self, method: str, options: AdmmOptions, *, warm: bool) -> Outcome:
        """Run ADMM."""
        began = time.perf_counter()
        result = admm(
            self.layer.gram,
            self.layer.down,
            self.keep,
            self.damping,
            start=self.obs if warm else None,
            options=options,
        )
        return self.outcome(
            method,
            result.groups,
            time.perf_counter() - began,
            last=result.last_groups,
            iterations=len(result.trace),
            status=result.status.value,
        )


def _benches(options: argparse.Namespace, sparsities: list[float]) -> Iterator[Bench]:
    for number in options.layers:
        layer = _load(options, number)
        order = damage_curve(layer.gram, layer.down).order
        for sparsity in sparsities:
            yield Bench(number, layer, sparsity, order, options.damping)


def _variants(options: argparse.Namespace) -> list[dict[str, object]]:
    """Every setting of ADMM, at the middle sparsity."""
    rules: list[tuple[RhoRule, float]] = [
        ("fixed", 0.1),
        ("fixed", 1.0),
        ("fixed", 10.0),
        ("growing", 0.1),
        ("balanced", 1.0),
    ]
    rankings: tuple[Ranking, ...] = get_args(Ranking)
    outcomes: list[Outcome] = []
    for bench in _benches(options, [0.3]):
        for ranking, (rule, rho), warm in product(rankings, rules, (True, False)):
            name = f"{ranking} {rule} {rho:g} {'warm' if warm else 'cold'}"
            settings = AdmmOptions(
                ranking=ranking,
                rho=rho,
                rho_rule=rule,
                max_iterations=options.max_iterations,
                patience=6,
            )
            outcomes.append(bench.admm(name, settings, warm=warm))
        print(f"layer {bench.number} done", file=sys.stderr, flush=True)
    return _table(outcomes)


def _supports(options: argparse.Namespace) -> list[dict[str, object]]:
    """OBS by block size and damping, exchanges, and the better settings of ADMM."""
    outcomes: list[Outcome] = []
    for number in options.layers:
        layer = _load(options, number)
        curves = _curves(layer)
        baseline = next(iter(curves.values()))[0]
        for sparsity in options.sparsity:
            bench = Bench(number, layer, sparsity, baseline, options.damping)
            for name, (order, seconds) in curves.items():
                outcomes.append(bench.outcome(name, bench.kept(order), seconds))
            outcomes += _refinements(bench)
        print(f"layer {number} done", file=sys.stderr, flush=True)
    return _table(outcomes)


def _curves(layer: Layer) -> dict[str, tuple[Tensor, float]]:
    """Orders of removal, and the seconds they took; the baseline first."""
    curves: dict[str, tuple[Tensor, float]] = {}
    wanted = [(16, HESSIAN_DAMPING), (4, HESSIAN_DAMPING), (1, HESSIAN_DAMPING)]
    for block, damping in [*wanted, (16, 0.03), (16, 0.1), (16, DAMPING)]:
        gram = layer.gram.to(torch.float64, copy=True)
        gram.diagonal().add_((damping - HESSIAN_DAMPING) * float(gram.diagonal().mean()))
        began = time.perf_counter()
        order = damage_curve(gram, layer.down, block).order
        curves[f"OBS, blocks of {block}, damping {damping:g}"] = order, time.perf_counter() - began
    energy = layer.gram.diagonal() * layer.down.square().sum(0)
    curves["Wanda"] = energy.argsort(), 0.0
    return curves


def _refinements(bench: Bench) -> list[Outcome]:
    began = time.perf_counter()
    result = swap_groups(bench.problem, bench.obs)
    status = "local optimum" if result.local_optimum else "limit"
    seconds = time.perf_counter() - began
    exchanged = bench.outcome(
        "exchanges", result.groups, seconds, iterations=result.evaluations, status=status
    )
    rules: list[tuple[RhoRule, float]] = [("fixed", 0.3), ("growing", 0.1), ("growing", 0.5)]
    return [exchanged] + [
        bench.admm(
            f"ADMM metric {rule} {rho:g} warm",
            AdmmOptions(rho=rho, rho_rule=rule, patience=6),
            warm=True,
        )
        for rule, rho in rules
    ]


def _table(outcomes: list[Outcome]) -> list[dict[str, object]]:
    """Print one line per sparsity and method; all outcomes as JSON."""
    print(
        "| sparsity | method | train | test mean | median | better/same/worse | last | guarded "
        "| iterations | ended | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    keys = dict.fromkeys((outcome.sparsity, outcome.method) for outcome in outcomes)
    for sparsity, method in sorted(keys, key=lambda key: key[0]):
        rows = [o for o in outcomes if (o.sparsity, o.method) == (sparsity, method)]
        better, worse = sum(o.test < 0 for o in rows), sum(o.test > 0 for o in rows)
        ended = ", ".join(
            f"{sum(o.status == s for o in rows)} {s}" for s in sorted({o.status for o in rows}) if s
        )
        print(
            f"| {sparsity:.0%} | {method} | {_mean(rows, 'train'):+.2%} | "
            f"{_mean(rows, 'test'):+.2%} | {statistics.median(o.test for o in rows):+.2%} | "
            f"{better}/{len(rows) - better - worse}/{worse} | {_mean(rows, 'last'):+.2%} | "
            f"{_mean(rows, 'guarded'):+.2%} | {_mean(rows, 'iterations'):.0f} | {ended} | "
            f"{_mean(rows, 'seconds'):.1f} |",
            flush=True,
        )
    return [asdict(outcome) for outcome in outcomes]


def _mean(rows: list[Outcome], name: str) -> float:
    return statistics.fmean(getattr(row, name) for row in rows)


# --- Recovery -------------------------------------------------------------------------------------


def _recovery(options: argparse.Namespace) -> list[dict[str, object]]:
    """Error before and after, by steps."""
    rows: list[dict[str, object]] = []
    print("| sparsity | layer | steps | ridge | recovered | change | status | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for bench in _benches(options, options.sparsity):
        layer, kept = bench.layer, bench.obs
        down = ridge(layer.gram, layer.down, kept, DAMPING).weight.float()
        weights = {"gate": layer.weights["gate"][kept], "up": layer.weights["up"][kept]}
        weights["down"] = down
        train, choosing, testing = map(layer.tokens, (TRAIN_ROWS, CHOOSE_ROWS, TEST_ROWS))
        for steps in options.steps:
            began = time.perf_counter()
            result = recover(_ffn, weights, train, choosing, RecoveryOptions(steps=steps))
            seconds = time.perf_counter() - began
            before = _known(held_out_error(_ffn, weights, testing, 1024))
            after = _known(held_out_error(_ffn, result.weights, testing, 1024))
            print(
                f"| {bench.sparsity:.0%} | {bench.number} | {steps} | {before:.4f} | {after:.4f} "
                f"| {after / before - 1:+.1%} | {result.status.value} | {seconds:.1f} |",
                flush=True,
            )
            rows.append(
                {
                    "sparsity": bench.sparsity,
                    "layer": bench.number,
                    "steps": steps,
                    "before": before,
                    "after": after,
                    "status": result.status.value,
                    "seconds": seconds,
                }
            )
    return rows


_PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, object]]]] = {
    "variants": _variants,
    "supports": _supports,
    "recovery": _recovery,
}


if __name__ == "__main__":
    sys.exit(main())
