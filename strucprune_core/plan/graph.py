"""The job as a graph of units. No torch.

    model_check ─ weights
    model_check ─ tokens ─ embed ─ capture.0 ─ capture.1 ─ … ─ capture.L-1
                        │            │                │
                     curve.l      (gram, held-out rows, probe inputs of every layer)
                        └── probe.g, or gradient.G ─ … ─ gradient.0, or nothing
                                    │
                                 price.1 ── (further rounds) ── allocate
    allocate ── solve.l ──────────────────────────────────────┬─ assemble.s ─┬─ verify
    tokens ─ replay ── recover.0 ─ recover.1 ─ … (optional) ──┤              └─ evaluate.pruned
                       distill.0 ─ distill.1 ─ … (optional) ──┘
    tokens ─ evaluate.dense      (the same) ── gguf, block_configs.s ── check.* (optional) ──┐
                                                                    … ── report ── (publish)

All but `tokens` begin after `weights`, in which every tensor is read once and must be finite: one
more read of the model, so that a broken one is found before any heavy work.

Where the price is set more than once, every round r tries its widths, and all but the last are
reviewed:

    price.r ─ trial.r.0 ─ trial.r.1 ─ … ─ trial.r.L-1 ─ review.r.g ─ price.r+1

Each unit is a pure function of the files and values named here, and finishes by writing one
manifest (see `run.workspace`). Resuming is skipping finished units; distributing is claiming them:
curves, probes and solves of different layers do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from strucprune_core.run.progress import Phase
from strucprune_core.spec import Energy, Export

# Layers probed or reviewed by one unit. A unit streams the weights from its first layer to the last
# once, for all of its layers together: larger groups read less, smaller ones spread over more
# workers. Gradients go back through as many layers in a unit.
PROBE_GROUP_LAYERS = 8
# Steps of distillation in one unit: what is lost if a run is killed. Each unit keeps all weights in
# training and their moments.
DISTILL_UNIT_STEPS = 10

WRITTEN: Mapping[str, str] = {
    "assemble": "shard.safetensors",
    "gguf": "model.gguf",
    "block_configs": "shard.safetensors",
}
"""The file that each kind of unit writes of what is published."""
CALIBRATION, EVALUATION = "calibration.uri", "evaluation.uri"
"""The fields that name a job's texts."""
CHECKS = ("verify", "check")
JUDGED = "evaluate.pruned"


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
        """The layer, group, shard or (of a price) round; -1 for units that have none."""
        suffix = self.name.rpartition(".")[2]
        return int(suffix) if suffix.isdigit() else -1

    @property
    def round(self) -> int:
        """Of trials and reviews, in which round, from 1: 2 of "trial.2.7"."""
        return int(self.name.split(".")[1])


def texts_behind(unit: str) -> tuple[str, ...]:
    """The texts, by field, that a unit's results depend on: what it reads comes from them."""
    if unit in ("model_check", "weights"):
        return ()
    if unit in ("tokens.evaluation", "evaluate.dense"):
        return (EVALUATION,)
    if unit in (JUDGED, "report"):
        return (CALIBRATION, EVALUATION)
    return (CALIBRATION,)


def probe_groups(layers: int) -> list[range]:
    """Layers of each probe unit."""
    step = PROBE_GROUP_LAYERS
    return [range(start, min(start + step, layers)) for start in range(0, layers, step)]


def build_graph(
    *,
    layers: int,
    shards: Sequence[Iterable[int]],
    energy: Energy,
    evaluate: bool,
    recover: bool = False,
    rounds: int = 1,
    exports: Sequence[Export] = (),
    export_shards: Sequence[Iterable[int]] = (),
    distill_steps: int = 0,
) -> list[Unit]:
    """All units of a job, every one after those it depends on.

    Files are written as soon as the layers in them are solved, so that storing them need not wait
    for the end.

    Args:
        layers: Decoder layers of the model.
        shards: Of each file of the pruned checkpoint, the layers whose solutions it holds.
        energy: Where layers' energies come from; `forward` needs no units.
        evaluate: Whether perplexity is measured.
        recover: Whether solved layers are trained.
        rounds: Times the price is set.
        exports: Further forms of the result.
        export_shards: The same of each file of the export `block_configs`.
        distill_steps: Steps that the whole model is trained for.
    """
    windows = ("tokens", "calibration.npy")
    units = [Unit("model_check", Phase.INSPECTING)]
    if evaluate:
        units.append(Unit("tokens.evaluation", Phase.INSPECTING, ("model_check",)))
    units.append(Unit("tokens", Phase.INSPECTING, ("model_check",)))
    units.append(Unit("weights", Phase.INSPECTING, ("model_check",)))
    if evaluate:
        units.append(_evaluation("dense", ("tokens.evaluation", "weights"), ()))
    units.append(Unit("embed", Phase.CALIBRATING, ("tokens", "weights"), (windows,)))
    units += [_capture(layer) for layer in range(layers)]
    units += [_curve(layer) for layer in range(layers)]
    units += _allocation(layers, energy, rounds, distill=distill_steps > 0)
    units += [_solve(layer) for layer in range(layers)]
    solutions = tuple((f"solve.{layer}", "solution.safetensors") for layer in range(layers))
    if recover:
        units.append(Unit("replay", Phase.SOLVING, ("tokens",), (windows,)))
        units += [_recover(layer) for layer in range(layers)]
        solutions = tuple((f"recover.{layer}", name) for layer, (_, name) in enumerate(solutions))
    if distill_steps:
        units += _distillation(layers, distill_steps, solutions)
        last = units[-1].name
        solutions = tuple((last, f"distilled.{layer}.safetensors") for layer in range(layers))
    checkpoint = [_write(f"assemble.{n}", held, solutions) for n, held in enumerate(shards)]
    exported = {each: _export(each, export_shards, solutions) for each in exports}
    units = _as_soon_as_possible(units, [*checkpoint, *chain(*exported.values())])
    units += _judges(checkpoint, solutions, evaluate=evaluate)
    units += [_check(export, files, solutions) for export, files in exported.items()]
    written = _files([unit for unit in units if unit.kind in WRITTEN])
    judges = tuple(unit.name for unit in units if unit.name == JUDGED or unit.kind in CHECKS)
    return [*units, Unit("report", Phase.COMMITTING, judges, written)]


def _write(name: str, layers: Iterable[int], solutions: tuple[tuple[str, str], ...]) -> Unit:
    """Write a file that holds what became of these layers."""
    reads = tuple(solutions[layer] for layer in layers)
    return Unit(name, Phase.UPLOADING, ("allocate", *_owners(reads)), reads)


def _export(
    export: Export, shards: Sequence[Iterable[int]], solutions: tuple[tuple[str, str], ...]
) -> list[Unit]:
    """The units that write an export, one for each of its files of weights."""
    if export == "gguf":
        return [_write("gguf", range(len(solutions)), solutions)]
    return [_write(f"{export}.{number}", held, solutions) for number, held in enumerate(shards)]


def _as_soon_as_possible(units: list[Unit], late: list[Unit]) -> list[Unit]:
    """Both in one order: each of `late` right after the last one that it comes after."""
    found: list[Unit] = []
    done: set[str] = set()
    for unit in units:
        found.append(unit)
        done.add(unit.name)
        found += [each for each in late if done.issuperset(each.after)]
        late = [each for each in late if not done.issuperset(each.after)]
    return found


def _judges(
    checkpoint: list[Unit], solutions: tuple[tuple[str, str], ...], *, evaluate: bool
) -> list[Unit]:
    """Judge the pruned checkpoint."""
    files = _files(checkpoint)
    after = _owners(files)
    judges = [_evaluation("pruned", (*after, "evaluate.dense"), files)] if evaluate else []
    reads = (("tokens", "calibration.npy"), *solutions, *files)
    return [*judges, Unit("verify", Phase.EVALUATING, _owners(reads), reads)]


def _check(export: Export, written: list[Unit], solutions: tuple[tuple[str, str], ...]) -> Unit:
    """Compare an export with what it was written from."""
    reads = (("tokens", "calibration.npy"), *solutions, *_files(written))
    return Unit(f"check.{export}", Phase.EVALUATING, _owners(reads), reads)


def _files(units: list[Unit]) -> tuple[tuple[str, str], ...]:
    """What units write of what is published."""
    return tuple((unit.name, WRITTEN[unit.kind]) for unit in units)


def _owners(files: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The units that files belong to, each once."""
    return tuple(dict.fromkeys(unit for unit, _ in files))


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
    after = _owners(reads)
    return Unit(f"probe.{number}", Phase.ALLOCATING, after, tuple(reads))


def _gradient(number: int, group: range, layers: int) -> Unit:
    """Starts from the loss in the last group, elsewhere from what came out of the next one."""
    if group.stop == layers:
        start = [(f"capture.{layers - 1}", "hidden.npy"), ("tokens", "calibration.npy")]
    else:
        start = [(f"gradient.{number + 1}", "gradient.npy")]
    reads = (*start, *((f"capture.{layer}", "probe_input.npy") for layer in group))
    after = _owners(reads)
    flow = tuple(file for file in start if file[1] == "gradient.npy")
    return Unit(f"gradient.{number}", Phase.ALLOCATING, after, reads, releases=flow)


def _energies(energy: Energy, layers: int) -> list[Unit]:
    groups = list(enumerate(probe_groups(layers)))
    if energy == "kl_probe":
        return [_probe(number, group, layers) for number, group in groups]
    if energy == "gradient":
        return [_gradient(number, group, layers) for number, group in reversed(groups)]
    return []


def _allocation(layers: int, energy: Energy, rounds: int, *, distill: bool) -> list[Unit]:
    """Measure energies, and set the price in rounds."""
    measured = _energies(energy, layers)
    units = [*measured, _price(1, layers, tuple(unit.name for unit in measured))]
    for number in range(1, rounds + 1):
        if rounds > 1:
            units += [_trial(number, layer, layers) for layer in range(layers)]
        if number < rounds:
            reviews = _reviews(number, layers)
            units += [*reviews, _price(number + 1, layers, tuple(unit.name for unit in reviews))]
    return [*units, _allocate(rounds, layers, distill=distill)]


def _price(number: int, layers: int, measured: tuple[str, ...]) -> Unit:
    curves = tuple(f"curve.{layer}" for layer in range(layers))
    files = tuple((curve, "curves.safetensors") for curve in curves)
    before = (f"price.{number - 1}",) if number > 1 else ()
    after = (*curves, *before, *measured)
    tried = _tried(number - 1, layers, reviewed=True) if number > 1 else ()
    return Unit(f"price.{number}", Phase.ALLOCATING, after, files, releases=tried)


def _trial(number: int, layer: int, layers: int) -> Unit:
    """Solve a layer at the round's widths, and lead the pruned model's hidden states through it."""
    capture, curve = f"capture.{layer}", f"curve.{layer}"
    stream = _pruned_stream(number, layer)
    reads = [stream, (capture, "grams.safetensors"), (curve, "curves.safetensors")]
    if layer == layers - 1:
        reads.append((f"capture.{layer}", "hidden.npy"))
    after = tuple(dict.fromkeys((f"price.{number}", *(unit for unit, _ in reads))))
    return Unit(f"trial.{number}.{layer}", Phase.ALLOCATING, after, tuple(reads))


def _reviews(number: int, layers: int) -> list[Unit]:
    """Put the dense layers of a group back into the pruned model, one by one."""
    last = f"trial.{number}.{layers - 1}"
    units = []
    for group_number, group in enumerate(probe_groups(layers)):
        reads = [(f"capture.{layers - 1}", "hidden.npy")]
        reads += [_pruned_stream(number, layer) for layer in group]
        reads += [
            (f"trial.{number}.{layer}", "solution.safetensors")
            for layer in range(group.start, layers)
        ]
        after = tuple(dict.fromkeys((last, *(unit for unit, _ in reads))))
        name = f"review.{number}.{group_number}"
        units.append(Unit(name, Phase.ALLOCATING, after, tuple(reads)))
    return units


def _pruned_stream(number: int, layer: int) -> tuple[str, str]:
    """Input of a layer on the probe windows in the model that a round has pruned."""
    if layer == 0:
        return ("capture.0", "probe_input.npy")
    return (f"trial.{number}.{layer - 1}", "stream.npy")


def _tried(number: int, layers: int, *, reviewed: bool) -> tuple[tuple[str, str], ...]:
    """Files of a round's trials."""
    streams = tuple((f"trial.{number}.{layer}", "stream.npy") for layer in range(layers - 1))
    if not reviewed:
        return streams
    solved = ((f"trial.{number}.{layer}", "solution.safetensors") for layer in range(layers))
    return (*streams, *solved)


def _allocate(rounds: int, layers: int, *, distill: bool) -> Unit:
    """Choose a round. Distillation still needs what the dense model made of the text."""
    prices = tuple(f"price.{number}" for number in range(1, rounds + 1))
    last = tuple(f"trial.{number}.{layers - 1}" for number in range(1, rounds + 1))
    return Unit(
        "allocate",
        Phase.ALLOCATING,
        (*prices, *(last if rounds > 1 else ())),
        releases=(
            *(() if distill else ((f"capture.{layers - 1}", "hidden.npy"),)),
            *(_tried(rounds, layers, reviewed=False) if rounds > 1 else ()),
        ),
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
    return Unit(f"recover.{layer}", Phase.SOLVING, after, reads, releases=reads)


def distill_units(steps: int) -> list[range]:
    """Steps of each distillation unit, from 0."""
    size = DISTILL_UNIT_STEPS
    return [range(start, min(start + size, steps)) for start in range(0, steps, size)]


def _distillation(layers: int, steps: int, solutions: tuple[tuple[str, str], ...]) -> list[Unit]:
    """Train on from the unit before; the last one writes what is to be assembled."""
    dense = (f"capture.{layers - 1}", "hidden.npy")
    count = len(distill_units(steps))
    units: list[Unit] = []
    for number in range(count):
        before = f"distill.{number - 1}"
        state = tuple((before, f"state.{layer}.safetensors") for layer in range(layers))
        reads = (("tokens", "calibration.npy"), dense, *solutions, *(state if number else ()))
        after = tuple(dict.fromkeys(("allocate", *(unit for unit, _ in reads))))
        last = (dense, *solutions) if number == count - 1 else ()
        releases = (*(state if number else ()), *last)
        units.append(Unit(f"distill.{number}", Phase.SOLVING, after, reads, releases))
    return units


def _evaluation(which: str, after: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> Unit:
    reads = (("tokens.evaluation", "evaluation.npy"), *files)
    return Unit(f"evaluate.{which}", Phase.EVALUATING, after, reads)


def ancestors(units: list[Unit]) -> dict[str, frozenset[str]]:
    """All units before each: a lost one may have to run again although those after it are finished.

    Args:
        units: The graph, in topological order.
    """
    found: dict[str, frozenset[str]] = {}
    for unit in units:
        before = {*unit.after, *_owners(unit.reads)}
        found[unit.name] = frozenset(before.union(*(found[name] for name in before)))
    return found


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
