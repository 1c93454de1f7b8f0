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
                       refit.0 ─ refit.1 ─ … (if blocks go) ──┤
                       distill.0 ─ distill.1 ─ … (optional) ──┘
    verify ─ speed (optional, alone on its worker)
    weights ─ samples.dense, assemble.s ─ samples.pruned (optional)
    weights ─ tasks.dense (optional; tasks.pruned after it, beside evaluate.pruned)
    tokens ─ evaluate.dense      (the same) ── gguf, block_configs.s ── check.* (optional) ──┐
                     evaluate.pruned ── gguf_q8_0, fp8.s ── check.*, evaluate.* (optional) ──┤
                                                                    … ── report ── (publish)

All but `tokens` begin after `weights`, in which every tensor is read once and must be finite: one
more read of the model, so that a broken one is refused before any heavy work.

Where the price is set more than once, every round r tries its widths, and all but the last are
reviewed:

    price.r ─ trial.r.0 ─ trial.r.1 ─ … ─ trial.r.L-1 ─ review.r.g ─ price.r+1

A job that removes blocks measures them one after another before it allocates; if it removes nothing
else, there are neither curves nor prices:

    capture.L-1 ── block_probe.g ── drop.1 ── drop.2 ── … ── allocate

Experts beside channels are scored by `capture.l`, and numbers of them measured before `allocate`:

    capture.L-1, price.1 ── expert_probe ── allocate ── solve.l ── divergence

A job that removes experts alone solves nothing, and its graph is short:

    tokens ─ embed ─ route.0 ─ … ─ route.L-1 ── select ─┬─ assemble.s ── verify, evaluate.pruned …
                          └── probe.g (by choice) ──┘   └─ divergence

Each unit is a pure function of the files and values named here, and finishes by writing one
manifest (see `run.workspace`). What units leave is named in `run.artifacts`. Resuming is skipping
finished units; distributing is reserving them: curves, probes and solves of different layers do not
depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from strucprune_core.run.artifacts import (
    Allocate,
    Artifacts,
    Assemble,
    BlockConfigs,
    BlockProbe,
    Capture,
    Check,
    Curve,
    Distill,
    Divergence,
    Drop,
    Embed,
    Evaluate,
    EvaluationTokens,
    ExpertProbe,
    File,
    Fp8,
    Gguf,
    GgufQ80,
    Gradient,
    ModelCheck,
    Price,
    Probe,
    Recover,
    Refit,
    Repair,
    Replay,
    Report,
    Review,
    Route,
    Samples,
    Select,
    Sizes,
    Solve,
    Speed,
    Tasks,
    Tokens,
    Trial,
    Verify,
    Weights,
    Written,
)
from strucprune_core.run.progress import Phase
from strucprune_core.spec import QUANTISED_EXPORTS, Energy, Export

# Layers probed or reviewed by one unit. A unit streams the weights from its first layer to the last
# once, for all of its layers together: larger groups read less, smaller ones spread over more
# workers. Gradients go back through as many layers in a unit.
PROBE_GROUP_LAYERS = 8
# Steps of distillation in one unit: what is lost if a run is killed. Each unit keeps all weights in
# training and their moments.
DISTILL_UNIT_STEPS = 10

# Between a unit's name and the size that it is for.
SIZE_MARK = "@"

CALIBRATION, EVALUATION = "calibration.uri", "evaluation.uri"
TASK_FILES = "evaluation.task_files"
"""The fields that name a job's texts."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work.

    Attributes:
        name: Unique; "capture.7" is the capture of layer 7, "solve.7@0.3" the solve of that layer
            for one of several sizes (`plan.sizes`).
        phase: The phase that its progress and time count towards.
        after: Units that must be finished before it is finished.
        reads: Files it needs.
        releases: Files that nobody needs once it is finished.
        follows: Of `after`, units that need not be finished when it begins: they hand on what it
            reads of them while they run (`run.following`). All others must be.
    """

    name: str
    phase: Phase
    after: tuple[str, ...] = ()
    reads: tuple[File, ...] = ()
    releases: tuple[File, ...] = ()
    follows: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What is done: "capture" of "capture.7"."""
        return plain_name(self.name).partition(".")[0]

    @property
    def index(self) -> int:
        """The layer, group, shard or (of a price) round; -1 for units that have none."""
        suffix = plain_name(self.name).rpartition(".")[2]
        return int(suffix) if suffix.isdigit() else -1

    @property
    def round(self) -> int:
        """Of trials and reviews, in which round, from 1: 2 of "trial.2.7"."""
        return int(self.name.split(".")[1])

    @property
    def size(self) -> str:
        """The label of the size that it is for; "" if it is for all, or there is one."""
        return self.name.partition(SIZE_MARK)[2]


def plain_name(unit: str) -> str:
    """A unit's name without the size that it is for."""
    return unit.partition(SIZE_MARK)[0]


def texts_behind(unit: str) -> tuple[str, ...]:
    """The texts, by field, that a unit's results depend on: what it reads comes from them."""
    unit = plain_name(unit)
    if unit in (ModelCheck().unit, Weights().unit, Samples("dense").unit):
        return ()
    if unit in (EvaluationTokens().unit, Evaluate("dense").unit):
        return (EVALUATION,)
    if unit == Tasks("dense").unit:
        return (TASK_FILES,)
    if unit == Tasks("pruned").unit:
        return (CALIBRATION, TASK_FILES)
    if unit == Evaluate("pruned").unit:
        return (CALIBRATION, EVALUATION)
    # Exports in fewer bits come after the judges, and so does all that is made of them.
    of_all = {Report().unit, Sizes().unit}
    if unit in of_all or set(QUANTISED_EXPORTS) & {*unit.split(".")}:
        return (CALIBRATION, EVALUATION, TASK_FILES)
    return (CALIBRATION,)


def probe_groups(layers: int) -> list[range]:
    """Layers of each probe unit."""
    step = PROBE_GROUP_LAYERS
    return [range(start, min(start + step, layers)) for start in range(0, layers, step)]


def distill_units(steps: int) -> list[range]:
    """Steps of each distillation unit, from 0."""
    size = DISTILL_UNIT_STEPS
    return [range(start, min(start + size, steps)) for start in range(0, steps, size)]


def repaired_solution(layer: int, *, recover: bool, refit: bool = False) -> File:
    """A layer's solution before the model is trained as a whole."""
    if refit:
        return Refit(layer).solution
    return Recover(layer).solution if recover else Solve(layer).solution


def final_solution(layer: int, *, recover: bool, distill_steps: int, refit: bool = False) -> File:
    """A layer's solution as it is published."""
    if distill_steps:
        return Distill(len(distill_units(distill_steps)) - 1).distilled(layer)
    return repaired_solution(layer, recover=recover, refit=refit)


def build_graph(
    *,
    layers: int,
    shards: Sequence[Iterable[int]],
    energy: Energy,
    evaluate: bool,
    tasks: bool = False,
    recover: bool = False,
    rounds: int = 1,
    exports: Sequence[Export] = (),
    export_shards: Mapping[Export, Sequence[Iterable[int]]] | None = None,
    distill_steps: int = 0,
    blocks: int = 0,
    sites: bool = True,
    refit: bool = False,
    experts: bool = False,
    samples: bool = False,
    speed: bool = False,
    chunks: Sequence[range] = (range(1),),
) -> list[Unit]:
    """All units of a job, every one after those it depends on.

    Files are written as soon as the layers in them are solved, so that storing them need not wait
    for the end.

    Args:
        layers: Decoder layers of the model.
        shards: Of each file of the pruned checkpoint, the layers whose solutions it holds.
        energy: Where layers' energies come from; `forward` needs no units.
        evaluate: Whether perplexity is measured.
        tasks: Whether both models are judged by tasks.
        recover: Whether solved layers are trained.
        rounds: Times the price is set.
        exports: Further forms of the result.
        export_shards: As `shards`, of each export that has such files.
        distill_steps: Steps that the whole model is trained for.
        blocks: The most blocks that go whole.
        sites: Whether anything but whole blocks is removed.
        refit: Whether matrices behind removed blocks are solved again.
        experts: Whether experts go beside sites.
        samples: Whether both models continue prompts.
        speed: Whether both models' speed is measured.
        chunks: Sequences that `capture.l` hands on at a time; matters only to what really runs.
    """
    solutions = [
        final_solution(layer, recover=recover, distill_steps=distill_steps, refit=refit)
        for layer in range(layers)
    ]
    checkpoint = _checkpoint_files(shards)
    files_of = export_shards or {}
    exported = {each: _export_files(each, layers, files_of.get(each, ())) for each in exports}
    units = [
        *_inspection(evaluate=evaluate, tasks=tasks, samples=samples),
        *_calibration(layers, chunks, sites=sites),
        *_allocation(
            layers,
            energy,
            rounds,
            distill=distill_steps > 0,
            blocks=blocks,
            sites=sites,
            experts=experts,
        ),
        *(_solve(layer, sites=sites) for layer in range(layers)),
        *(_recovery(layers) if recover else ()),
        *(_refits(layers) if refit else ()),
    ]
    if distill_steps:
        given = [repaired_solution(n, recover=recover, refit=refit) for n in range(layers)]
        units += _distillation(layers, distill_steps, given)
    quantised = {each: files for each, files in exported.items() if each in QUANTISED_EXPORTS}
    others = [files.items() for each, files in exported.items() if each not in quantised]
    writers = [_write(file, held, solutions) for file, held in chain(checkpoint.items(), *others)]
    accepted = [_judge(Verify(), solutions, checkpoint)]
    if evaluate:
        accepted.insert(0, _evaluate_written("pruned", checkpoint))
    if tasks:
        accepted.insert(0, _tasks_of_pruned(checkpoint))
    if experts:
        hidden = Capture(layers - 1).hidden
        accepted.insert(0, _divergence(hidden, [Allocate().unit], solutions))
    after = [unit.name for unit in accepted]
    writers_in_fewer_bits = [
        _write(file, held, solutions, after)
        for files in quantised.values()
        for file, held in files.items()
    ]
    judges = [_judge(Check(each), solutions, files) for each, files in exported.items()]
    if evaluate:
        judges += [_evaluate_written(each, files) for each, files in quantised.items()]
    judges += _shown(checkpoint, samples=samples, speed=speed)
    every_file = chain(checkpoint, *exported.values())
    report = _report([*accepted, *judges], every_file)
    written = _as_soon_as_possible(units, writers)
    return [*written, *accepted, *writers_in_fewer_bits, *judges, report]


def build_experts_graph(
    *,
    layers: int,
    shards: Sequence[Iterable[int]],
    energy: Energy,
    evaluate: bool,
    tasks: bool = False,
    repair: bool = False,
    samples: bool = False,
    speed: bool = False,
) -> list[Unit]:
    """All units of a job that removes experts, every one after those it depends on.

    Args:
        layers: Decoder layers of the model.
        shards: Of each file of the pruned checkpoint, the layers of whose experts it holds some.
        energy: Where layers' energies come from: `forward` or `kl_probe`.
        evaluate: Whether perplexity is measured.
        tasks: Whether both models are judged by tasks.
        repair: Whether the experts that stay are repaired.
        samples: Whether both models continue prompts.
        speed: Whether both models' speed is measured.
    """
    probes = _expert_probes(layers) if energy == "kl_probe" else []
    probed = [file for unit in probes for file in unit.reads if file.name == Route.probe_input]
    windows = Tokens().calibration
    checkpoint = _checkpoint_files(shards)
    chosen = [Select().unit]
    repairs = [_repair(layer) for layer in range(layers)] if repair else []
    repaired = [Repair(layer).solution for layer in range(layers)] if repair else []
    divergence = _divergence(Route(layers - 1).hidden, chosen, repaired)
    judges = [
        *([_evaluate_written("pruned", checkpoint)] if evaluate else ()),
        *([_tasks_of_pruned(checkpoint)] if tasks else ()),
        _judge(Verify(), repaired, checkpoint),
        *_shown(checkpoint, samples=samples, speed=speed),
    ]
    return [
        *_inspection(evaluate=evaluate, tasks=tasks, samples=samples),
        _unit(Embed(), Phase.CALIBRATING, after=[Weights().unit], reads=[windows]),
        *(_route(layer) for layer in range(layers)),
        *probes,
        _unit(
            Select(),
            Phase.ALLOCATING,
            after=[*(Route(layer).unit for layer in range(layers)), *(p.name for p in probes)],
            releases=probed,
        ),
        *repairs,
        divergence,
        *(
            _unit(
                file,
                Phase.UPLOADING,
                after=chosen,
                reads=[repaired[layer] for layer in held] if repair else [],
            )
            for file, held in checkpoint.items()
        ),
        *judges,
        _report([divergence, *judges], [*checkpoint]),
    ]


def _divergence(dense: File, after: Iterable[str], solutions: Iterable[File]) -> Unit:
    """Compare the model without experts with what the dense one made of the text."""
    reads = [Tokens().calibration, dense, *solutions]
    return _unit(Divergence(), Phase.ALLOCATING, after=after, reads=reads, releases=[dense])


def _expert_probes(layers: int) -> list[Unit]:
    """Remove experts of each layer alone."""
    units: list[Unit] = []
    for number, group in enumerate(probe_groups(layers)):
        reads = [Route(layers - 1).hidden, *(Route(layer).probe_input for layer in group)]
        units.append(_unit(Probe(number), Phase.ALLOCATING, reads=reads))
    return units


def _repair(layer: int) -> Unit:
    """Change the experts that stay, on what the layers before make of the text."""
    before = [Repair(layer - 1).streams] if layer else [Tokens().calibration]
    after = [Select().unit]
    releases = before if layer else []
    return _unit(Repair(layer), Phase.SOLVING, after=after, reads=before, releases=releases)


def _route(layer: int) -> Unit:
    this = Route(layer)
    return _unit(this, Phase.CALIBRATING, reads=[this.entering], releases=[this.entering])


def _unit(
    artifacts: Artifacts,
    phase: Phase,
    *,
    after: Iterable[str] = (),
    reads: Iterable[File] = (),
    releases: Iterable[File] = (),
) -> Unit:
    """A unit that comes after the units named, and after those whose files it reads."""
    reads = tuple(reads)
    before = dict.fromkeys((*after, *(file.unit for file in reads)))
    return Unit(artifacts.unit, phase, tuple(before), reads, tuple(releases))


def _inspection(*, evaluate: bool, tasks: bool, samples: bool) -> list[Unit]:
    """What is checked and read before any heavy work."""
    check = [ModelCheck().unit]
    units = [_unit(ModelCheck(), Phase.INSPECTING)]
    if evaluate:
        units.append(_unit(EvaluationTokens(), Phase.INSPECTING, after=check))
    units.append(_unit(Tokens(), Phase.INSPECTING, after=check))
    units.append(_unit(Weights(), Phase.INSPECTING, after=check))
    if evaluate:
        windows = EvaluationTokens().evaluation
        after = [Weights().unit]
        units.append(_unit(Evaluate("dense"), Phase.EVALUATING, after=after, reads=[windows]))
    if tasks:
        units.append(_unit(Tasks("dense"), Phase.EVALUATING, after=[Weights().unit]))
    if samples:
        units.append(_unit(Samples("dense"), Phase.EVALUATING, after=[Weights().unit]))
    return units


def _calibration(layers: int, chunks: Sequence[range], *, sites: bool) -> list[Unit]:
    """The dense model on the calibration text, and what its statistics say of each layer."""
    windows = Tokens().calibration
    return [
        _unit(Embed(), Phase.CALIBRATING, after=[Weights().unit], reads=[windows]),
        *(_capture(layer, chunks) for layer in range(layers)),
        *(_curve(layer) for layer in range(layers) if sites),
    ]


def _capture(layer: int, chunks: Sequence[range]) -> Unit:
    """May run beside the layer before, a chunk behind it."""
    this, before = Capture(layer), Capture(layer - 1)
    if layer == 0:
        entering = [Embed().hidden]
        return _unit(this, Phase.CALIBRATING, reads=entering, releases=entering)
    entering = [before.chunk(sequences) for sequences in chunks]
    unit = _unit(this, Phase.CALIBRATING, after=[before.unit], reads=entering, releases=entering)
    return replace(unit, follows=(before.unit,))


def _curve(layer: int) -> Unit:
    return _unit(Curve(layer), Phase.ALLOCATING, reads=[Capture(layer).grams])


def _allocation(
    layers: int,
    energy: Energy,
    rounds: int,
    *,
    distill: bool,
    blocks: int,
    sites: bool,
    experts: bool,
) -> list[Unit]:
    """Measure energies, set the price in rounds, and measure blocks."""
    if not sites:
        dropped = _drops(blocks, layers, [])
        return [*dropped, _allocate(0, layers, dropped, keeps_dense=distill)]
    measured = _energies(energy, layers)
    units = [*measured, _price(1, layers, measured)]
    if blocks:
        units += _drops(blocks, layers, [units[-1]])
    if experts:
        units.append(_expert_probe(layers, units[-1]))
    for number in range(1, rounds + 1):
        if rounds > 1:
            units += [_trial(number, layer, layers) for layer in range(layers)]
        if number < rounds:
            reviews = _reviews(number, layers)
            units += [*reviews, _price(number + 1, layers, reviews)]
    last = units[-1:] if blocks or experts else []
    return [*units, _allocate(rounds, layers, last, keeps_dense=distill or experts)]


def _expert_probe(layers: int, after: Unit) -> Unit:
    """Measure the dense model with fewer and fewer experts."""
    reads = [Capture(layers - 1).hidden, Capture(0).probe_input]
    return _unit(ExpertProbe(), Phase.ALLOCATING, after=[after.name], reads=reads)


def _drops(blocks: int, layers: int, after: list[Unit]) -> list[Unit]:
    """Measure the dense model without each block, and remove one after another."""
    hidden = Capture(layers - 1).hidden
    probes = [
        _unit(
            BlockProbe(number),
            Phase.ALLOCATING,
            reads=[hidden, Capture(group.start).probe_input],
        )
        for number, group in enumerate(probe_groups(layers))
    ]
    before = [unit.name for unit in (*after, *probes)]
    steps: list[Unit] = []
    for number in range(1, blocks + 1):
        reads = [hidden, Capture(0).probe_input]
        steps.append(_unit(Drop(number), Phase.ALLOCATING, after=before, reads=reads))
        before = [steps[-1].name]
    return [*probes, *steps]


def _energies(energy: Energy, layers: int) -> list[Unit]:
    groups = list(enumerate(probe_groups(layers)))
    if energy == "kl_probe":
        return [_probe(number, group, layers) for number, group in groups]
    if energy == "gradient":
        return [_gradient(number, group, layers) for number, group in reversed(groups)]
    return []


def _probe(number: int, group: range, layers: int) -> Unit:
    reads = [Capture(layers - 1).hidden]
    for layer in group:
        reads += [Capture(layer).grams, Capture(layer).probe_input, Curve(layer).curves]
    return _unit(Probe(number), Phase.ALLOCATING, reads=reads)


def _gradient(number: int, group: range, layers: int) -> Unit:
    """Starts from the loss in the last group, elsewhere from what came out of the next one."""
    inputs = [Capture(layer).probe_input for layer in group]
    if group.stop == layers:
        reads = [Capture(layers - 1).hidden, Tokens().calibration, *inputs]
        return _unit(Gradient(number), Phase.ALLOCATING, reads=reads)
    flow = Gradient(number + 1).flow
    return _unit(Gradient(number), Phase.ALLOCATING, reads=[flow, *inputs], releases=[flow])


def _price(number: int, layers: int, measured: list[Unit]) -> Unit:
    """Set the price; after a round was reviewed, its trials are no longer needed."""
    after = [unit.name for unit in measured]
    curves = [Curve(layer).curves for layer in range(layers)]
    if number == 1:
        return _unit(Price(1), Phase.ALLOCATING, after=after, reads=curves)
    before = number - 1
    return _unit(
        Price(number),
        Phase.ALLOCATING,
        after=[Price(before).unit, *after],
        reads=curves,
        releases=[
            *_streams(before, layers),
            *(Trial(before, layer).solution for layer in range(layers)),
        ],
    )


def _trial(number: int, layer: int, layers: int) -> Unit:
    """Solve a layer at the round's widths, and pass the pruned model's hidden states through it."""
    this = Trial(number, layer)
    reads = [this.entering, Capture(layer).grams, Curve(layer).curves]
    if layer == layers - 1:
        reads.append(Capture(layer).hidden)
    return _unit(this, Phase.ALLOCATING, after=[Price(number).unit], reads=reads)


def _reviews(number: int, layers: int) -> list[Unit]:
    """Put the dense layers of each group back into the pruned model, one by one."""
    after = [Trial(number, layers - 1).unit]
    units: list[Unit] = []
    for group_number, group in enumerate(probe_groups(layers)):
        reads = [
            Capture(layers - 1).hidden,
            *(Trial(number, layer).entering for layer in group),
            *(Trial(number, layer).solution for layer in range(group.start, layers)),
        ]
        review = Review(number, group_number)
        units.append(_unit(review, Phase.ALLOCATING, after=after, reads=reads))
    return units


def _streams(number: int, layers: int) -> list[File]:
    """Hidden states between the layers of a round's model."""
    return [Trial(number, layer).stream for layer in range(layers - 1)]


def _allocate(rounds: int, layers: int, dropped: list[Unit], *, keeps_dense: bool) -> Unit:
    """Choose a round, and blocks or a number of experts.

    Args:
        rounds: Times the price was set; 0 if blocks alone are removed.
        layers: Decoder layers.
        dropped: The steps of removing blocks, or what measures numbers of experts.
        keeps_dense: Whether what the dense model made of the text is needed afterwards.
    """
    after = [Price(number).unit for number in range(1, rounds + 1)]
    after += [unit.name for unit in dropped]
    releases = [] if keeps_dense else [Capture(layers - 1).hidden]
    if rounds > 1:
        after += [Trial(number, layers - 1).unit for number in range(1, rounds + 1)]
        releases += _streams(rounds, layers)
    return _unit(Allocate(), Phase.ALLOCATING, after=after, releases=releases)


def _solve(layer: int, *, sites: bool) -> Unit:
    capture = Capture(layer)
    curves = [Curve(layer).curves] if sites else []
    return _unit(
        Solve(layer),
        Phase.SOLVING,
        after=[Allocate().unit],
        reads=[capture.grams, capture.holdout, *curves],
        releases=[capture.grams, capture.holdout, capture.probe_input],
    )


def _recovery(layers: int) -> list[Unit]:
    """Train each layer, on what the one before makes of the text."""
    units = [_unit(Replay(), Phase.SOLVING, reads=[Tokens().calibration])]
    for layer in range(layers):
        reads = [Recover(layer).entering, Solve(layer).solution]
        units.append(_unit(Recover(layer), Phase.SOLVING, reads=reads, releases=reads))
    return units


def _refits(layers: int) -> list[Unit]:
    """Solve matrices behind removed blocks again, on what the layers before make of the text."""
    windows = Tokens().calibration
    units = [_unit(Replay(), Phase.SOLVING, after=[Allocate().unit], reads=[windows])]
    for layer in range(layers):
        reads = [Refit(layer).entering, Solve(layer).solution]
        units.append(_unit(Refit(layer), Phase.SOLVING, reads=reads, releases=reads))
    return units


def _distillation(layers: int, steps: int, given: list[File]) -> list[Unit]:
    """Train on from the unit before; the last one writes what is to be assembled."""
    dense = Capture(layers - 1).hidden
    last = len(distill_units(steps)) - 1
    units: list[Unit] = []
    for number in range(last + 1):
        before = Distill(number - 1)
        state = [before.state(layer) for layer in range(layers)] if number else []
        units.append(
            _unit(
                Distill(number),
                Phase.SOLVING,
                after=[Allocate().unit],
                reads=[Tokens().calibration, dense, *given, *state],
                releases=[*state, *((dense, *given) if number == last else ())],
            )
        )
    return units


def _checkpoint_files(shards: Sequence[Iterable[int]]) -> dict[Written, Iterable[int]]:
    """The files of the pruned checkpoint, each with the layers whose solutions it holds."""
    return {Assemble(number): held for number, held in enumerate(shards)}


def _export_files(
    export: Export, layers: int, shards: Sequence[Iterable[int]]
) -> dict[Written, Iterable[int]]:
    """The same of an export's files of weights."""
    if export == "gguf":
        return {Gguf(): range(layers)}
    if export == "gguf_q8_0":
        return {GgufQ80(): range(layers)}
    kind = Fp8 if export == "fp8" else BlockConfigs
    return {kind(number): held for number, held in enumerate(shards)}


def _write(
    file: Written, layers: Iterable[int], solutions: list[File], after: Iterable[str] = ()
) -> Unit:
    """Write a file that holds what became of these layers, once the units `after` are finished."""
    reads = [solutions[layer] for layer in layers]
    return _unit(file, Phase.UPLOADING, after=[Allocate().unit, *after], reads=reads)


def _as_soon_as_possible(units: list[Unit], late: list[Unit]) -> list[Unit]:
    """Both in one order: each of `late` right after the last one that it comes after."""
    ordered: list[Unit] = []
    done: set[str] = set()
    for unit in units:
        ordered.append(unit)
        done.add(unit.name)
        ordered += [each for each in late if done.issuperset(each.after)]
        late = [each for each in late if not done.issuperset(each.after)]
    return ordered


def _evaluate_written(model: Literal["pruned"] | Export, files: Iterable[Written]) -> Unit:
    """Measure the perplexity of written files."""
    reads = [EvaluationTokens().evaluation, *(file.written for file in files)]
    after = [Evaluate("dense").unit]
    return _unit(Evaluate(model), Phase.EVALUATING, after=after, reads=reads)


def _tasks_of_pruned(checkpoint: Iterable[Written]) -> Unit:
    """Judge the written files by tasks."""
    reads = [file.written for file in checkpoint]
    return _unit(Tasks("pruned"), Phase.EVALUATING, after=[Tasks("dense").unit], reads=reads)


def _shown(checkpoint: Iterable[Written], *, samples: bool, speed: bool) -> Iterator[Unit]:
    """What the written files are like, which decides nothing."""
    written = [file.written for file in checkpoint]
    if samples:
        after = [Samples("dense").unit]
        yield _unit(Samples("pruned"), Phase.EVALUATING, after=after, reads=written)
    if speed:  # Of files that transformers has loaded already.
        reads = [Tokens().calibration, *written]
        after = [Verify().unit, Evaluate("pruned").unit]
        yield _unit(Speed(), Phase.EVALUATING, after=after, reads=reads)


def _judge(judge: Verify | Check, solutions: list[File], files: Iterable[Written]) -> Unit:
    """Compare written files with what they were written from."""
    reads = [Tokens().calibration, *solutions, *(file.written for file in files)]
    return _unit(judge, Phase.EVALUATING, reads=reads)


def _report(judges: list[Unit], files: Iterable[Written]) -> Unit:
    """Report on files once all judges have passed them."""
    after = tuple(unit.name for unit in judges)
    return Unit(Report().unit, Phase.COMMITTING, after, tuple(file.written for file in files))


def publication(units: list[Unit]) -> Unit:
    """Publishing as a unit that is never finished: it reads what a complete job must have."""
    report = units[-1]
    documents = (File(report.name, name) for name in (Report.json, Report.html, Report.card))
    return Unit("publish", Phase.COMMITTING, (report.name,), (*report.reads, *documents))


def ancestors(units: list[Unit]) -> dict[str, frozenset[str]]:
    """All units before each: a lost one may have to run again although those after it are finished.

    Args:
        units: The graph, in topological order.
    """
    all_before: dict[str, frozenset[str]] = {}
    for unit in units:
        before = {*unit.after, *(file.unit for file in unit.reads)}
        all_before[unit.name] = frozenset(before.union(*(all_before[name] for name in before)))
    return all_before


def must_be_finished(units: list[Unit]) -> dict[str, frozenset[str]]:
    """All units that must be finished when each begins: `ancestors` but for those it follows.

    Where a unit follows another one, what must be finished is what the other one began with.

    Args:
        units: The graph, in topological order.
    """
    all_before, strictly = ancestors(units), dict[str, frozenset[str]]()
    for unit in units:
        before = {*unit.after, *(file.unit for file in unit.reads)} - {*unit.follows}
        strictly[unit.name] = frozenset(before).union(
            *(all_before[name] for name in before), *(strictly[name] for name in unit.follows)
        )
    return strictly


def pending(
    units: list[Unit], finished: set[str], present: AbstractSet[tuple[str, str]]
) -> list[Unit]:
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
            todo |= {file.unit for file in unit.reads if file not in present}
    return [unit for unit in units if unit.name in todo]
