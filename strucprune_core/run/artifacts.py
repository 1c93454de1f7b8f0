"""What each kind of unit leaves for other units: files and values, each named once. No torch.

A class stands for a kind, an instance for one unit:

    Capture(3).unit        "capture.3"
    Capture(3).grams       the File of that unit, as the graph names it and other units read it
    Capture.grams          "grams.safetensors", the name under which the unit itself writes it
    Capture(3).read(...)   its values, small results that are stored as JSON, as `CaptureValues`

A comment after a file says what it holds, in shapes of: samples, the tokens of one (length), the
hidden size d, and the columns of a site m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, overload

from pydantic import TypeAdapter

from strucprune_core.calibration.degeneracy import TokenCounts
from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.method.site_statistics import SiteStatistics
from strucprune_core.models.blocks import Block
from strucprune_core.models.structures import SiteKind
from strucprune_core.report.document import REPORT_HTML, REPORT_JSON
from strucprune_core.spec import Export

V = TypeVar("V")


class File(NamedTuple):
    """A file that a unit writes: the unit's name and the file's."""

    unit: str
    name: str


class _FileName:
    """Declares a file of a kind of units: its name by the class, its `File` by an instance."""

    def __init__(self, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, unit: None, kind: type) -> str: ...

    @overload
    def __get__(self, unit: Artifacts, kind: type) -> File: ...

    def __get__(self, unit: Artifacts | None, kind: type) -> str | File:
        return self._name if unit is None else File(unit.unit, self._name)


@dataclass(frozen=True)
class Artifacts:
    """What one unit leaves. The fields of a subclass are the numbers in the unit's name."""

    kind: ClassVar[str]

    @property
    def unit(self) -> str:
        """The unit's name: its kind and its numbers."""
        numbers = (str(getattr(self, field.name)) for field in fields(self))
        return ".".join((self.kind, *numbers))


class ValuedArtifacts(Artifacts, Generic[V]):
    """What a unit leaves that has values too, of the dataclass `values_type`."""

    values_type: type[V]

    def read(self, stored: Mapping[str, Any]) -> V:
        """The unit's values from what its manifest holds.

        Raises:
            pydantic.ValidationError: they are not what the unit writes.
        """
        return TypeAdapter(self.values_type).validate_python(dict(stored))


class OfKind(NamedTuple):
    """A figure of all sites of a kind in a layer."""

    layer: int
    kind: SiteKind
    value: float


@dataclass(frozen=True, slots=True)
class ReloadValues:
    """How the logits of reloaded files compare with those expected."""

    reference: str
    tokens: int
    max_abs_logit_difference: float
    tolerance: float


# The model and the texts.


@dataclass(frozen=True, slots=True)
class ModelCheckValues:
    """How our forward pass on the dense model compares with the reference's."""

    reference: str
    tokens: int
    layers: list[int]
    max_relative_difference: float
    tolerance: float


@dataclass(frozen=True)
class ModelCheck(ValuedArtifacts[ModelCheckValues]):
    """`model_check`: whether we compute what transformers computes."""

    kind = "model_check"
    values_type = ModelCheckValues


@dataclass(frozen=True, slots=True)
class WeightsValues:
    """How many tensors were read."""

    tensors: int


@dataclass(frozen=True)
class Weights(ValuedArtifacts[WeightsValues]):
    """`weights`: whether every weight is finite."""

    kind = "weights"
    values_type = WeightsValues


@dataclass(frozen=True, slots=True)
class TokensValues:
    """What is known of the calibration text.

    Attributes:
        calibration_sha256: Of the text or documents, hex.
        calibration_cut: Whether only the beginning of a long text was read.
        calibration_tokens: Counted in all windows.
    """

    calibration_sha256: str
    calibration_cut: bool
    calibration_tokens: TokenCounts


@dataclass(frozen=True)
class Tokens(ValuedArtifacts[TokensValues]):
    """`tokens`: the calibration text as token windows."""

    kind = "tokens"
    values_type = TokensValues

    calibration = _FileName("calibration.npy")  # (samples x length) int32


@dataclass(frozen=True, slots=True)
class EvaluationTokensValues:
    """The same of the evaluation text."""

    evaluation_sha256: str
    evaluation_tokens: TokenCounts


@dataclass(frozen=True)
class EvaluationTokens(ValuedArtifacts[EvaluationTokensValues]):
    """`tokens.evaluation`: the evaluation text as token windows."""

    kind = "tokens.evaluation"
    values_type = EvaluationTokensValues

    evaluation = _FileName("evaluation.npy")  # (sequences x length) int32


@dataclass(frozen=True)
class Embed(Artifacts):
    """`embed`: the first layer's input."""

    kind = "embed"

    hidden = _FileName("hidden.npy")  # (samples x length x d) float32


# Statistics and damage.


@dataclass(frozen=True, slots=True)
class RouteValues:
    """What a layer's experts do with the calibration text; lists by expert, empty without experts.

    Attributes:
        tokens: Tokens that reach an expert.
        output_norm: Mean squared norm of its output on these; 0 if there are none.
        reap: Mean of that norm times the router's weight.
        damage: (removals, mean squared error of the layer's output) of some numbers of removals.
    """

    tokens: list[int]
    output_norm: list[float]
    reap: list[float]
    damage: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class CaptureValues:
    """Statistics of a layer's sites, by the site's name.

    Attributes:
        sites: These.
        experts: What its experts do, of a job that removes some beside sites.
    """

    sites: dict[str, SiteStatistics]
    experts: RouteValues | None = None


@dataclass(frozen=True)
class Capture(ValuedArtifacts[CaptureValues]):
    """`capture.l`: the dense layer l on the calibration text."""

    kind = "capture"
    values_type = CaptureValues
    layer: int

    # Of the last layer its output, (samples x length x d) float32; of others see `chunk`.
    hidden = _FileName("hidden.npy")
    grams = _FileName("grams.safetensors")  # per site its Gram matrix, (m x m) float32
    holdout = _FileName("holdout.safetensors")  # per site held-out inputs, weighted, (tokens x m)
    probe_input = _FileName("probe_input.npy")  # the layer's input, (sequences x tokens x d)

    def chunk(self, sequences: range) -> File:
        """The output of some sequences, (sequences x length x d) float32: see `plan.chunks`.

        The name tells which: attempts with other chunks do not take it for their own.
        """
        return File(self.unit, f"hidden.{sequences.start}-{sequences.stop}.npy")


@dataclass(frozen=True, slots=True)
class CurveValues:
    """How a layer's curves were computed.

    Attributes:
        dtypes: In what, by the site's name.
    """

    dtypes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve(ValuedArtifacts[CurveValues]):
    """`curve.l`: damage curves of a layer's sites."""

    kind = "curve"
    values_type = CurveValues
    layer: int

    curves = _FileName("curves.safetensors")  # per site `order` int64 and `damage` float64, (m,)


# Experts.


@dataclass(frozen=True)
class Route(ValuedArtifacts[RouteValues]):
    """`route.l`: the dense layer l on the calibration text, where experts are removed."""

    kind = "route"
    values_type = RouteValues
    layer: int

    hidden = _FileName("hidden.npy")  # the layer's output, as of `Capture`
    probe_input = _FileName("probe_input.npy")  # its input, as of `Capture`; where it is probed

    @property
    def entering(self) -> File:
        """The layer's input."""
        return Route(self.layer - 1).hidden if self.layer else Embed().hidden


@dataclass(frozen=True, slots=True)
class SelectValues:
    """Which experts stay, and what is known of the others.

    Attributes:
        kept: Those that stay, by layer, ascending; none for a layer without experts.
        price: Loss per parameter of the last step; None where layers keep equally many.
        temperature: Of the softmax rule; None for the others.
        energies: By layer, loss per unit of damage; 1 where it was not measured.
        damages: By layer, energy-scaled damage of what goes.
    """

    kept: list[list[int]]
    price: float | None
    temperature: float | None
    energies: list[float]
    damages: list[float]


@dataclass(frozen=True)
class Select(ValuedArtifacts[SelectValues]):
    """`select`: which experts stay."""

    kind = "select"
    values_type = SelectValues


@dataclass(frozen=True, slots=True)
class RepairValues:
    """How repairing a layer went.

    Attributes:
        status: accepted; rejected: the held-out error is no smaller; or why it was not tried.
        error_before: Squared error of the layer's output on held-out tokens, relative to its
            energy, without the experts that went; None if it was not tried.
        error_after: The same after the repair.
    """

    status: str
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True)
class Repair(ValuedArtifacts[RepairValues]):
    """`repair.l`: the experts that stay in layer l, changed for those that went."""

    kind = "repair"
    values_type = RepairValues
    layer: int

    solution = _FileName("solution.safetensors")  # changed tensors by name, as they are published
    streams = _FileName("streams.npy")  # (2 x samples x length x d): dense, pruned; not of the last


@dataclass(frozen=True, slots=True)
class DivergenceValues:
    """What the model without the chosen experts does on the probe windows.

    Attributes:
        kl: Mean KL divergence per token from the dense model, in nats.
    """

    kl: float


@dataclass(frozen=True)
class Divergence(ValuedArtifacts[DivergenceValues]):
    """`divergence`: whether the experts that went were redundant."""

    kind = "divergence"
    values_type = DivergenceValues


@dataclass(frozen=True, slots=True)
class ExpertProbeValues:
    """Numbers of experts beside sites.

    Attributes:
        losses: (steps, mean KL divergence per token from the dense model, in nats). A step takes
            one expert of each group from every layer.
    """

    losses: list[tuple[int, float]]


@dataclass(frozen=True)
class ExpertProbe(ValuedArtifacts[ExpertProbeValues]):
    """`expert_probe`: the dense model with fewer and fewer experts in every layer."""

    kind = "expert_probe"
    values_type = ExpertProbeValues


# Blocks.


class BlockLoss(NamedTuple):
    """What a model loses with a block.

    Attributes:
        block: The block.
        parameters: What goes with it.
        added: Mean KL divergence per token from the dense model that its removal adds, in nats, in
            the model in which it was measured last.
    """

    block: Block
    parameters: int
    added: float


@dataclass(frozen=True, slots=True)
class BlockProbeValues:
    """The dense model without each block."""

    losses: list[BlockLoss]


@dataclass(frozen=True)
class BlockProbe(ValuedArtifacts[BlockProbeValues]):
    """`block_probe.g`: the dense model without one block, for the blocks of a group of layers."""

    kind = "block_probe"
    values_type = BlockProbeValues
    group: int


@dataclass(frozen=True, slots=True)
class DropValues:
    """One step of removing blocks.

    Attributes:
        removed: The block that goes; None if no further one is worth it, or none is left.
        losses: What is known of the blocks that are left.
    """

    removed: BlockLoss | None
    losses: list[BlockLoss]


@dataclass(frozen=True)
class Drop(ValuedArtifacts[DropValues]):
    """`drop.k`: which block goes next, from 1."""

    kind = "drop"
    values_type = DropValues
    step: int


# Energies and widths.


@dataclass(frozen=True, slots=True)
class ProbeValues:
    """Mean KL divergence per token from the dense model, of each variant."""

    kl: list[OfKind]


@dataclass(frozen=True)
class Probe(ValuedArtifacts[ProbeValues]):
    """`probe.g`: the dense model with one kind of sites of one layer pruned, for a group."""

    kind = "probe"
    values_type = ProbeValues
    group: int


@dataclass(frozen=True, slots=True)
class GradientValues:
    """Energies from gradients."""

    energies: list[OfKind]


@dataclass(frozen=True)
class Gradient(ValuedArtifacts[GradientValues]):
    """`gradient.g`: the loss's gradient, back through a group of layers."""

    kind = "gradient"
    values_type = GradientValues
    group: int

    flow = _FileName("gradient.npy")  # at the group's input, (sequences x tokens x d) float32


@dataclass(frozen=True, slots=True)
class PriceValues:
    """An allocation. Lists go by planned site.

    Attributes:
        widths: Structures kept.
        price: Loss per parameter of the last step; None for rules without a price.
        temperature: Of the softmax rule; None for the others.
        energies: Loss per unit of damage.
        predicted_damages: Energy-scaled damage of what goes.
    """

    widths: tuple[int, ...]
    price: float | None
    temperature: float | None
    energies: list[float]
    predicted_damages: list[float]


@dataclass(frozen=True)
class Price(ValuedArtifacts[PriceValues]):
    """`price.r`: the widths of round r, from 1."""

    kind = "price"
    values_type = PriceValues
    round: int


@dataclass(frozen=True, slots=True)
class SearchValues:
    """A sparsity.

    Attributes:
        sparsity: To be tried, or of the last search, to be used.
        predicted_loss: What the damage curves and energies predict for it: see `PriceValues`.
    """

    sparsity: float
    predicted_loss: float


@dataclass(frozen=True)
class Search(ValuedArtifacts[SearchValues]):
    """`search.k`: the sparsity of the k-th try, from 1, and after all tries that of the result."""

    kind = "search"
    values_type = SearchValues
    number: int


@dataclass(frozen=True, slots=True)
class TrialValues:
    """Mean KL divergence per token of the round's model; known after its last layer only."""

    kl: float | None = None


@dataclass(frozen=True)
class Trial(ValuedArtifacts[TrialValues]):
    """`trial.r.l`: layer l, solved at the widths of round r."""

    kind = "trial"
    values_type = TrialValues
    round: int
    layer: int

    solution = _FileName("solution.safetensors")  # see `run.solutions`; not of the last round
    stream = _FileName("stream.npy")  # output in the round's model, (sequences x tokens x d)

    @property
    def entering(self) -> File:
        """The layer's input on the probe windows in the round's model."""
        return Trial(self.round, self.layer - 1).stream if self.layer else Capture(0).probe_input


@dataclass(frozen=True)
class Review(ValuedArtifacts[ProbeValues]):
    """`review.r.g`: the round's model with one kind of sites of one layer dense, for a group."""

    kind = "review"
    values_type = ProbeValues
    round: int
    group: int


@dataclass(frozen=True, slots=True)
class AllocateValues(PriceValues):
    """The values of one round's price.

    Attributes:
        round: Which round's, from 1.
        kls: Of each round's model; empty if there was only one.
        blocks: Blocks that go whole, in the order of their removal.
        experts: By layer the experts that stay, of a job that removes some beside sites.
        expert_loss: Mean KL divergence per token of the dense model without the others.
    """

    round: int
    kls: list[float]
    blocks: list[BlockLoss] = field(default_factory=list)
    experts: list[list[int]] = field(default_factory=list)
    expert_loss: float = 0.0


@dataclass(frozen=True)
class Allocate(ValuedArtifacts[AllocateValues]):
    """`allocate`: the widths that are used."""

    kind = "allocate"
    values_type = AllocateValues


# Solutions.


@dataclass(frozen=True, slots=True)
class AdmmValues:
    """How ADMM went at a site, in the terms of `report.AdmmReport`."""

    status: str
    iterations: int
    factorisations: int
    rho: float | None
    primal_residual: float | None
    dual_residual: float | None
    objective_before: float
    objective_after: float
    exchanged: int
    held_out_error_before: float | None
    held_out_error_after: float | None
    taken: bool


@dataclass(frozen=True, slots=True)
class SolvedSite:
    """How solving a site went, in the terms of `report.SiteReport`, and in which dtype."""

    reconstruction_error: float | None
    damping: float
    damping_retries: int
    admm: AdmmValues | None = None
    dtype: str = "float64"


@dataclass(frozen=True, slots=True)
class SolveValues:
    """How solving a layer went, by the site's name."""

    sites: dict[str, SolvedSite]


@dataclass(frozen=True)
class Solve(ValuedArtifacts[SolveValues]):
    """`solve.l`: what stays of layer l, repaired."""

    kind = "solve"
    values_type = SolveValues
    layer: int

    solution = _FileName("solution.safetensors")  # see `run.solutions`


@dataclass(frozen=True, slots=True)
class RefitValues:
    """How solving the matrix behind removed blocks again went.

    Attributes:
        refitted: Whether the layer has such a matrix.
        error_before: Squared error of the layer's output on held-out tokens, relative to what the
            dense layer adds; None if it is unknown.
        error_after: The same with the new matrix.
        taken: Whether that is used.
    """

    refitted: bool
    error_before: float | None = None
    error_after: float | None = None
    taken: bool = False


@dataclass(frozen=True)
class Refit(ValuedArtifacts[RefitValues]):
    """`refit.l`: layer l on what the layers before it, without the removed blocks, hand on."""

    kind = "refit"
    values_type = RefitValues
    layer: int

    solution = _FileName("solution.safetensors")  # see `run.solutions`
    streams = _FileName("streams.npy")  # the next layer's input; not of the last layer

    @property
    def entering(self) -> File:
        """The layer's input, as `Recover` has it."""
        return Refit(self.layer - 1).streams if self.layer else Replay().streams


@dataclass(frozen=True)
class Replay(Artifacts):
    """`replay`: the first layer's input, for recovery and refits."""

    kind = "replay"

    streams = _FileName("streams.npy")  # (streams x samples x length x d) float32


@dataclass(frozen=True, slots=True)
class RecoverValues:
    """How training a layer went, in the terms of `report.RecoveryReport`."""

    status: str
    error_before: float | None
    error_after: float | None


@dataclass(frozen=True)
class Recover(ValuedArtifacts[RecoverValues]):
    """`recover.l`: layer l, trained."""

    kind = "recover"
    values_type = RecoverValues
    layer: int

    solution = _FileName("solution.safetensors")  # see `run.solutions`
    streams = _FileName("streams.npy")  # the next layer's input; not of the last layer

    @property
    def entering(self) -> File:
        """The layer's input."""
        return Recover(self.layer - 1).streams if self.layer else Replay().streams


@dataclass(frozen=True, slots=True)
class DistillValues:
    """How some steps of distillation went.

    Attributes:
        losses: Of each step.
        diverged: Whether training has ended for this.
        kl_before: Divergence from the dense model on held-out tokens, in nats per token, before
            the first step of all.
        kl_after: The same after the last step, if training has not diverged; of the last unit.
        status: Whether the result is used; of the last unit.
    """

    losses: list[float]
    diverged: bool
    kl_before: float
    kl_after: float | None = None
    status: str | None = None


@dataclass(frozen=True)
class Distill(ValuedArtifacts[DistillValues]):
    """`distill.k`: some steps of training all layers."""

    kind = "distill"
    values_type = DistillValues
    number: int

    def state(self, layer: int) -> File:
        """A layer in training, with moments; not of the last unit."""
        return File(self.unit, f"state.{layer}.safetensors")

    def distilled(self, layer: int) -> File:
        """A layer's solution (see `run.solutions`) and its other matrices; of the last unit."""
        return File(self.unit, f"distilled.{layer}.safetensors")


# The result.


@dataclass(frozen=True)
class Assemble(Artifacts):
    """`assemble.s`: a file of the pruned checkpoint."""

    kind = "assemble"
    shard: int

    written = _FileName("shard.safetensors")


@dataclass(frozen=True)
class Gguf(Artifacts):
    """`gguf`: the export of this name, one file."""

    kind = "gguf"

    written = _FileName("model.gguf")


@dataclass(frozen=True)
class GgufQ80(Artifacts):
    """`gguf_q8_0`: the export of this name, one file."""

    kind = "gguf_q8_0"

    written = _FileName("model.gguf")


@dataclass(frozen=True)
class Fp8(Artifacts):
    """`fp8.s`: a file of the export of this name."""

    kind = "fp8"
    shard: int

    written = _FileName("shard.safetensors")


@dataclass(frozen=True)
class BlockConfigs(Artifacts):
    """`block_configs.s`: a file of the export of this name."""

    kind = "block_configs"
    shard: int

    written = _FileName("shard.safetensors")


Written = Assemble | Gguf | GgufQ80 | Fp8 | BlockConfigs
"""Units whose file `written` is published."""


@dataclass(frozen=True, slots=True)
class EvaluateValues:
    """Perplexity on the evaluation text.

    Attributes:
        perplexity: Of the model.
        rejected: Of one of several sizes, why it is not published.
    """

    perplexity: float
    rejected: str | None = None


@dataclass(frozen=True)
class Evaluate(ValuedArtifacts[EvaluateValues]):
    """`evaluate.dense`, `evaluate.pruned`, `evaluate.e`: the perplexity of one model."""

    kind = "evaluate"
    values_type = EvaluateValues
    model: Literal["dense", "pruned"] | Export  # an export in fewer bits


@dataclass(frozen=True, slots=True)
class SampleTokens:
    """What a model writes after a prompt.

    Attributes:
        prompt: Tokens of the prompt.
        written: Tokens that follow.
        ended: Whether the model ended the text itself; that token is left out.
    """

    prompt: list[int]
    written: list[int]
    ended: bool


@dataclass(frozen=True, slots=True)
class SamplesValues:
    """Continuations of the prompts, in their order.

    Attributes:
        tokens: Of this model.
        compared: Of the pruned model, for each prompt the fields of `report.document.SampleReport`.
    """

    tokens: list[SampleTokens]
    compared: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Samples(ValuedArtifacts[SamplesValues]):
    """`samples.dense`, `samples.pruned`: how one model continues the prompts."""

    kind = "samples"
    values_type = SamplesValues
    model: Literal["dense", "pruned"]


@dataclass(frozen=True, slots=True)
class TasksValues:
    """Scores on tasks.

    Attributes:
        harness: Release of lm-evaluation-harness.
        scores: For each task the fields of `report.document.TaskScores`.
        cut_requests: Requests that were too long and lost their beginning.
        rejected: Why this size of several is not published; None if it is.
    """

    harness: str
    scores: list[dict[str, Any]]
    cut_requests: int
    rejected: str | None = None


@dataclass(frozen=True)
class Tasks(ValuedArtifacts[TasksValues]):
    """`tasks.dense`, `tasks.pruned`: what one model makes of the tasks."""

    kind = "tasks"
    values_type = TasksValues
    model: Literal["dense", "pruned"]


@dataclass(frozen=True, slots=True)
class SpeedValues:
    """How fast both models are.

    Attributes:
        runtime: What they ran in, with its version.
        dtype: What they were computed in.
        device: Where.
        threads: Of torch.
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens that were written after it.
        runs: The fields of each `report.document.SpeedRun`, in their order.
        peak_bytes: Most memory of each model while it ran, by "dense" and "pruned".
        not_measured: Why there are no figures; None if there are.
    """

    runtime: str = ""
    dtype: str = ""
    device: str = ""
    threads: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    not_measured: str | None = None


@dataclass(frozen=True)
class Speed(ValuedArtifacts[SpeedValues]):
    """`speed`: both models in transformers, whole, in turns."""

    kind = "speed"
    values_type = SpeedValues


@dataclass(frozen=True)
class Verify(ValuedArtifacts[ReloadValues]):
    """`verify`: the pruned checkpoint in transformers."""

    kind = "verify"
    values_type = ReloadValues


@dataclass(frozen=True)
class Check(ValuedArtifacts[ReloadValues]):
    """`check.e`: an export in transformers."""

    kind = "check"
    values_type = ReloadValues
    export: Export


@dataclass(frozen=True)
class Report(Artifacts):
    """`report`: the report's documents."""

    kind = "report"

    json = _FileName(REPORT_JSON)
    html = _FileName(REPORT_HTML)
    card = _FileName(MODEL_CARD)


@dataclass(frozen=True)
class Sizes(Artifacts):
    """`sizes`: documents on all sizes of a job that has several, under the names of `Report`."""

    kind = "sizes"
