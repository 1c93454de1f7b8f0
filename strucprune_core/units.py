"""The job as a graph of units. No torch.

    tokens ─ embed ─ capture.0 ─ capture.1 ─ … ─ capture.L-1
                        │            │                │
                     curve.l      (gram, held-out rows, probe inputs of every layer)
                        └──── probe.g ── allocate ── solve.l ─┬─ assemble.s ─┬─ verify
    tokens ─ replay ── recover.0 ─ recover.1 ─ … (optional) ──┘              └─ evaluate.pruned
    tokens ─ evaluate.dense       solve.l ── gguf, block_configs.s ── check.* (optional) ──┐
                                                                    … ── report ── (publish)

Each unit is a pure function of the files and values named here, and finishes by writing one
manifest (see `workspace`). Resuming is skipping finished units; distributing is claiming them:
curves, probes and solves of different layers do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strucprune_core.progress import Phase
from strucprune_core.spec import Export

# Layers probed by one unit. A unit streams the weights from its first layer to the last once, for
# all of its layers together: larger groups read less, smaller ones spread over more workers.
PROBE_GROUP_LAYERS = 8

EXPORT_FILE: Mapping[Export, str] = {"gguf": "model.gguf", "block_configs": "shard.safetensors"}
"""What each unit of an export writes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work.

    Attributes:
        name: Unique; "capture.7" is the capture of layer 7.
        phase: The phase that its progress and time count towards.
        after: Units that must be finished before.
        reads: Files it needs, as (unit, file name).
        releases: Files that nobody needs once it is finished.
    """

    name: str
    phase: Phase
    after: tuple[str, ...] = ()
    reads: tuple[tuple[str, str], ...] = ()
    releases: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """What is done: "capture" of "capture.7"."""
        return self.name.partition(".")[0]

    @property
    def index(self) -> int:
        """The layer, group or shard it is done to; -1 for units that have none."""
        suffix = self.name.partition(".")[2]
        return int(suffix) if suffix.isdigit() else -1


def probe_groups(layers: int) -> list[range]:
    """Layers of each probe unit."""
    step = PROBE_GROUP_LAYERS
    return [range(start, min(start + step, layers)) for start in range(0, layers, step)]


def build_graph(
    *,
    layers: int,
    shards: int,
    probes: bool,
    evaluate: bool,
    recover: bool = False,
    exports: Sequence[Export] = (),
    export_shards: int = 0,
) -> list[Unit]:
    """All units of a job, every one after those it depends on.

    Args:
        layers: Decoder layers of the model.
        shards: Files of the pruned checkpoint, exactly: each is a unit.
        probes: Whether the allocation needs layer energies.
        evaluate: Whether perplexity is measured.
        recover: Whether solved layers are trained.
        exports: Further forms of the result.
        export_shards: Files of the export `block_configs`.
    """
    units = [Unit("tokens", Phase.INSPECTING)]
    if evaluate:
        units.append(_evaluation("dense", ("tokens",), ()))
    windows = ("tokens", "calibration.npy")
    units.append(Unit("embed", Phase.CALIBRATING, ("tokens",), (windows,)))
    units += [_capture(layer) for layer in range(layers)]
    units += [_curve(layer) for layer in range(layers)]
    groups = probe_groups(layers) if probes else []
    units += [_probe(number, group, layers) for number, group in enumerate(groups)]
    units.append(_allocate(layers, len(groups)))
    units += [_solve(layer) for layer in range(layers)]
    if recover:
        embedded = (("tokens", "calibration.npy"),)
        units.append(Unit("replay", Phase.SOLVING, ("tokens",), embedded))
        units += [_recover(layer) for layer in range(layers)]
    last_word = "recover" if recover else "solve"
    solved = tuple(f"{last_word}.{layer}" for layer in range(layers))
    solutions = tuple((unit, "solution.safetensors") for unit in solved)
    units += [
        Unit(f"assemble.{shard}", Phase.UPLOADING, ("allocate", *solved), solutions)
        for shard in range(shards)
    ]
    assembled = tuple(f"assemble.{shard}" for shard in range(shards))
    files = tuple((unit, "shard.safetensors") for unit in assembled)
    if evaluate:
        units.append(_evaluation("pruned", (*assembled, "evaluate.dense"), files))
    reads = (windows, *solutions, *files)
    units.append(Unit("verify", Phase.EVALUATING, ("tokens", *solved, *assembled), reads))
    last = ("verify", "evaluate.pruned") if evaluate else ("verify",)
    exported: tuple[tuple[str, str], ...] = ()
    for export in exports:
        written = _export(export, export_shards, ("allocate", *solved), solutions)
        products = tuple((unit.name, EXPORT_FILE[export]) for unit in written)
        after = ("tokens", *solved, *(unit.name for unit in written))
        check = Unit(f"check.{export}", Phase.EVALUATING, after, (windows, *solutions, *products))
        units += [*written, check]
        last, exported = (*last, check.name), (*exported, *products)
    units.append(Unit("report", Phase.COMMITTING, last, (*files, *exported)))
    return units


def _export(
    export: Export, shards: int, after: tuple[str, ...], reads: tuple[tuple[str, str], ...]
) -> list[Unit]:
    """The units that write an export, one for each of its files of weights."""
    names = ["gguf"] if export == "gguf" else [f"block_configs.{shard}" for shard in range(shards)]
    return [Unit(name, Phase.UPLOADING, after, reads) for name in names]


def publication(units: list[Unit]) -> Unit:
    """Publishing as a unit that is never finished: it reads what a complete job must have."""
    report = units[-1]
    files = tuple((report.name, name) for name in ("report.json", "report.html"))
    return Unit("publish", Phase.COMMITTING, (report.name,), (*report.reads, *files))


def _capture(layer: int) -> Unit:
    before = "embed" if layer == 0 else f"capture.{layer - 1}"
    hidden = ((before, "hidden.npy"),)
    return Unit(f"capture.{layer}", Phase.CALIBRATING, (before,), hidden, releases=hidden)


def _curve(layer: int) -> Unit:
    capture = f"capture.{layer}"
    return Unit(f"curve.{layer}", Phase.ALLOCATING, (capture,), ((capture, "grams.safetensors"),))


def _probe(number: int, group: range, layers: int) -> Unit:
    reads = [(f"capture.{layers - 1}", "hidden.npy")]
    for layer in group:
        reads += [(f"capture.{layer}", name) for name in ("grams.safetensors", "probe_input.npy")]
        reads.append((f"curve.{layer}", "curves.safetensors"))
    after = tuple(dict.fromkeys(unit for unit, _ in reads))
    return Unit(f"probe.{number}", Phase.ALLOCATING, after, tuple(reads))


def _allocate(layers: int, groups: int) -> Unit:
    curves = tuple(f"curve.{layer}" for layer in range(layers))
    probes = tuple(f"probe.{number}" for number in range(groups))
    return Unit(
        "allocate",
        Phase.ALLOCATING,
        (*curves, *probes),
        tuple((curve, "curves.safetensors") for curve in curves),
        releases=((f"capture.{layers - 1}", "hidden.npy"),),
    )


def _solve(layer: int) -> Unit:
    capture, curve = f"capture.{layer}", f"curve.{layer}"
    statistics = ((capture, "grams.safetensors"), (capture, "holdout.safetensors"))
    return Unit(
        f"solve.{layer}",
        Phase.SOLVING,
        ("allocate", capture, curve),
        (*statistics, (curve, "curves.safetensors")),
        releases=(*statistics, (capture, "probe_input.npy")),
    )


def _recover(layer: int) -> Unit:
    before = "replay" if layer == 0 else f"recover.{layer - 1}"
    streams = ((before, "streams.npy"),)
    solution = (f"solve.{layer}", "solution.safetensors")
    after = (before, f"solve.{layer}")
    reads = (*streams, solution)
    return Unit(f"recover.{layer}", Phase.SOLVING, after, reads, releases=streams)


def _evaluation(which: str, after: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> Unit:
    reads = (("tokens", "evaluation.npy"), *files)
    return Unit(f"evaluate.{which}", Phase.EVALUATING, after, reads)


def pending(units: list[Unit], finished: set[str], present: set[tuple[str, str]]) -> list[Unit]:
    """Units that still have to run, in order.

    A finished unit runs again only where a pending one needs a file of it that is gone.

    Args:
        units: The graph, in topological order.
        finished: Units with a manifest.
        present: Files that are there in full.
    """
    todo = {unit.name for unit in units if unit.name not in finished}
    for unit in reversed(units):
        if unit.name in todo:
            todo |= {owner for owner, name in unit.reads if (owner, name) not in present}
    return [unit for unit in units if unit.name in todo]
