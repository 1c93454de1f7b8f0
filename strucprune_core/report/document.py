"""The report of a pruning job: a typed, versioned document. No torch.

`report.json` is this class dumped; `html` draws it. A change that breaks readers raises the
major version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = "1.3"
# Names of the documents in an output, next to the files of the checkpoint.
REPORT_JSON, REPORT_HTML, MANIFEST = "report.json", "report.html", "strucprune.json"


class Part(BaseModel):
    """A part of a report: nothing but its fields, and they stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterSummary(Part):
    """Which LoRA adapter was merged into the model."""

    uri: str = Field(description="Of a hub with the commit that was read.")
    version: str = Field(description="SHA-256 (hex) over its configuration, header and version.")
    rank: int = Field(description="`r` of its configuration.")
    alpha: float = Field(description="`lora_alpha` of its configuration.")
    modules: list[str] = Field(description="Modules to whose matrices a product was added.")
    replaced: list[str] = Field(description="Tensors in whose place it has another.")


class ModelSummary(Part):
    """Which model was pruned."""

    uri: str
    architecture: str = Field(description="`model_type` of config.json, e.g. llama.")
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    dtype: str
    digest: str = Field(description="SHA-256 (hex) of config.json and every safetensors header.")
    adapter: AdapterSummary | None = Field(default=None, description="None if there is none.")


class Environment(Part):
    """What ran the job."""

    strucprune: str
    python: str
    torch: str
    device: str
    platform: str
    threads: int
    precision: str = Field(
        default="float32",
        description="`float32`, `tf32` or `bfloat16`: of matrix products in layers.",
    )
    solve_dtype: str = Field(
        default="float64",
        description="Of damage curves and solves: `float64`, or `float32` where checks allow it. "
        "Curves of over 4,096 columns are tried in `float32` on a CPU, too.",
    )


class SizeSummary(Part):
    """Size of one checkpoint."""

    parameters: int
    bytes: int = Field(description="Bytes of the safetensors files.")
    ffn_channels: int
    query_heads: int
    kv_heads: int
    experts: int = Field(
        default=0,
        description="Routed experts of all layers, of a job that removes some; else 0.",
    )
    kv_cache_bytes_per_token: int | None = Field(
        description="Keys and values of one token in all layers, in the checkpoint's dtype; null "
        "where the architecture keeps something else."
    )
    flops_per_token: int = Field(
        description="2 x the weights a token multiplies with (LM head included, attention scores "
        "left out)."
    )


class SparsitySummary(Part):
    """Requested against reached: the share of the prunable structures' parameters."""

    requested: float
    reached: float
    channels_removed: int = Field(description="FFN channels.")
    kv_heads_removed: int
    query_heads_removed: int
    experts_removed: int = 0
    blocks_removed: int = Field(
        default=0, description="Attention and FFN blocks that went whole; a layer has both."
    )
    parameters_removed: int


class TargetReport(Part):
    """What the result was to come to, and what it comes to."""

    kind: str = Field(description="`parameters`, `bytes` or `memory_bytes`.")
    most: int = Field(description="What was asked for.")
    reached: int


class PredictedSpeed(Part):
    """How fast both models are by the table of a device, which was measured beforehand."""

    asked: float = Field(description="How many times as fast the result was to be.")
    predicted: float = Field(description="What it comes to by the table.")
    of: str = Field(description="`decode` or `prefill`.")
    dense_seconds: float = Field(description="Of a pass: a token of each sequence, or a prompt.")
    pruned_seconds: float
    sequences: int
    tokens: int = Field(description="New tokens of each sequence in a pass.")
    context_tokens: int = Field(description="Tokens of each sequence in the KV cache before it.")
    table: str = Field(description="Name of the table; of one that came with the job, `own`.")
    table_sha256: str = Field(description="Of what the table says.")
    device: str
    threads: int
    dtype: str
    runtime: str = Field(description="With its version.")
    measured_on: str = Field(description="Date of the table.")


class TryReport(Part):
    """One sparsity that was tried."""

    sparsity: float
    predicted_ratio: float = Field(
        description="Of perplexities, as damage curves and energies predict it."
    )
    perplexity_ratio: float | None = Field(description="As measured; null: not finite.")


class SearchReport(Part):
    """How the sparsity was found that keeps perplexity."""

    max_perplexity_ratio: float = Field(description="What was asked for.")
    tries: list[TryReport]


class Loading(Part):
    """How a runtime loads the result."""

    runtime: str
    note: str = Field(description="What it needs.")
    language: str = Field(description="Of the example: `python` or `sh`.")
    example: str = Field(description="A program, or a command, run in the result's directory.")


class AdmmReport(Part):
    """What ADMM did at one site, started from the one-shot choice of structures."""

    status: str = Field(
        description="converged; settled: the choice changed no more; iteration_limit; diverged: "
        "the best choice before that was judged."
    )
    iterations: int
    factorisations: int
    rho: float | None = Field(
        description="Last penalty, relative to the mean diagonal; null: no iteration was done."
    )
    primal_residual: float | None = Field(description="Last, relative.")
    dual_residual: float | None = Field(description="Last, relative.")
    objective_before: float = Field(
        description="Exact error of the one-shot choice on calibration tokens, relative."
    )
    objective_after: float = Field(description="The same of ADMM's choice.")
    exchanged: int = Field(description="Structures in which the choices differ.")
    held_out_error_before: float | None = Field(
        description="Error of the one-shot choice once repaired; null: unknown, as below."
    )
    held_out_error_after: float | None = Field(description="The same of ADMM's choice.")
    taken: bool = Field(description="Whether ADMM's choice erred less on held-out tokens.")


class SiteReport(Part):
    """One matrix that lost input columns: of the FFN, of an expert, of attention."""

    name: str
    structures_before: int
    structures_after: int
    energy: float = Field(description="Loss per unit of damage; 1 where it was not measured.")
    predicted_damage: float = Field(description="Energy-scaled OBS damage of what was removed.")
    reconstruction_error: float | None = Field(
        description="Squared error of its output relative to its energy, held-out tokens; null: "
        "unknown, since no held-out token reached it."
    )
    calibration_tokens: int = Field(description="Calibration tokens that its statistics are of.")
    columns: int = Field(
        description="Input columns before pruning. With fewer calibration tokens than that, a part "
        "of its statistics is assumed."
    )
    measured_share: float = Field(
        description="Share of the energy in its statistics that was measured; 1 is usual, with 0 "
        "it was ranked by its weights alone."
    )
    effective_rank: float | None = Field(
        description="Independent directions of its inputs: its columns if no two are correlated, 1 "
        "if all are, 0 if all tokens are alike; null: they are zero."
    )
    damping: float = Field(description="Ridge used, relative to the Gram's mean diagonal.")
    damping_retries: int = Field(description="Times the ridge was raised to factorise; 0 is usual.")
    dtype: str = Field(default="float64", description="What its repair was computed in.")
    admm: AdmmReport | None = Field(default=None, description="Null: not asked for.")


class BlockReport(Part):
    """A block that went whole."""

    layer: int = Field(description="Its layer, by the dense model's number.")
    structure: str = Field(description="`attention_blocks`, `ffn_blocks`, or `layers` for both.")
    parameters: int = Field(description="What went with it.")
    kl: float = Field(
        description="KL divergence per token from the dense model, on held-out windows, of the "
        "model without it and all before it, with nothing else removed."
    )


class RoundReport(Part):
    """One allocation of widths, by one price."""

    price: float | None = Field(description="Loss per parameter of the last step; null: softmax.")
    temperature: float | None
    predicted_damage: float = Field(description="Energy-scaled damage of all sites together.")
    widths: list[int] = Field(description="Structures kept, by site, layer by layer.")
    kl: float | None = Field(
        description="KL divergence per token of the model so pruned, before recovery, from the "
        "dense one on held-out windows; null if there was one round (but never where experts went)."
    )
    used: bool


class RecoveryReport(Part):
    """Training of one layer: squared error of its output on held-out tokens.

    It is relative to the energy of what the FFN is to add to the residual stream; of layers that
    run in transformers' modules, to that of what the layer is to add.
    """

    status: str = Field(description="accepted, rejected or diverged; only accepted weights stay.")
    error_before: float | None = Field(description="Null if it is unknown.")
    error_after: float | None = Field(description="Null if unknown, or if training diverged.")


class RefitReport(Part):
    """The FFN's output matrix behind a removed block, solved again on what now reaches it."""

    error_before: float | None = Field(
        description="Squared error of the layer's output on held-out tokens, relative to what the "
        "dense layer adds; null if it is unknown."
    )
    error_after: float | None = Field(description="The same with the new matrix.")
    taken: bool = Field(description="Whether the new matrix is used.")


class DistillationReport(Part):
    """Training of the model as a whole: KL divergence from the dense one, nats per token."""

    status: str = Field(description="accepted, rejected or diverged; only accepted weights stay.")
    steps: int
    kl_before: float = Field(description="On held-out calibration text, before.")
    kl_after: float | None = Field(description="The same after; null if training diverged.")
    losses: list[float] = Field(description="Of each step's batch.")
    seconds: float


class RepairReport(Part):
    """Repair of a layer's experts: squared error of its output relative to its energy."""

    status: str = Field(description="accepted, rejected, or why it was not tried.")
    error_before: float | None = Field(description="On held-out text; null: not tried.")
    error_after: float | None = Field(description="The same with the repaired experts.")


class ExpertsReport(Part):
    """The routed experts of a layer; lists go by their dense numbers."""

    removed: list[int] = Field(description="Those that went; the others keep their order.")
    calibration_tokens: list[int] = Field(description="Calibration tokens that reached each.")
    scores: list[float] = Field(
        description="What they were ranked by: `pruning.expert_score`; 0 if no token reached one."
    )
    repair: RepairReport | None = Field(default=None, description="Null: not asked for.")

    @property
    def before(self) -> int:
        """How many there were."""
        return len(self.scores)

    @property
    def after(self) -> int:
        """How many stay."""
        return self.before - len(self.removed)


class LayerReport(Part):
    """One decoder layer. Its energy, error and damping are the largest of its sites."""

    index: int
    width_before: int = Field(description="FFN channels, all experts together.")
    width_after: int
    query_heads_before: int
    query_heads_after: int
    kv_heads_before: int
    kv_heads_after: int
    sites: list[SiteReport]
    recovery: RecoveryReport | None = Field(default=None, description="Null: not asked for.")
    refit: RefitReport | None = Field(
        default=None, description="Null: no block before the layer's FFN went, or it is trained."
    )
    experts: ExpertsReport | None = Field(
        default=None, description="Null: the job removed none, or the layer has none."
    )
    energy: float = Field(description="Loss per unit of damage; 1 where it was not measured.")
    predicted_damage: float = Field(description="Energy-scaled OBS damage of what was removed.")
    reconstruction_error: float | None = Field(
        description="Squared error of the output relative to its energy, held-out tokens; null: "
        "unknown at all sites."
    )
    damping: float = Field(description="Ridge used, relative to the Gram's mean diagonal.")
    damping_retries: int = Field(description="Times the ridge was raised to factorise; 0 is usual.")
    seconds: float = Field(description="Capture, curve, and solve time of this layer.")


class PerplexitySummary(Part):
    """Perplexity before and after, on the same windows."""

    before: float
    after: float
    ratio: float
    sequences: int
    sequence_length: int
    tokens: int = Field(description="Tokens predicted (the first of each window is not).")
    text_uri: str
    text_sha256: str


class TaskMetric(Part):
    """One metric of a task, as lm-evaluation-harness computes it."""

    name: str = Field(
        description="Such as `acc`; after a comma a filter of answers, if it has one."
    )
    value: float
    standard_error: float | None = Field(description="Null: the harness has none for it.")
    higher_is_better: bool | None = Field(description="Null: the task does not say.")


class TaskScores(Part):
    """What one model made of one task."""

    task: str
    version: str
    num_fewshot: int
    documents: int = Field(description="Documents that were judged.")
    available_documents: int = Field(description="Documents that the task has.")
    chance: float = Field(
        description="Accuracy of a random choice: the mean of 1 / choices over the documents; 0 "
        "where nothing is chosen from a list."
    )
    metrics: list[TaskMetric]
    requests_sha256: str = Field(description="SHA-256 (hex) of all that the model was asked.")

    def metric(self, *names: str) -> TaskMetric | None:
        """The first metric of one of these names."""
        by_name = {metric.name: metric for metric in self.metrics}
        return next((by_name[name] for name in names if name in by_name), None)


class TasksSummary(Part):
    """What both models made of the tasks, task by task in the same order."""

    harness: str = Field(description="Release of lm-evaluation-harness.")
    dense: list[TaskScores]
    pruned: list[TaskScores]
    retention: float | None = Field(
        description="Share of the dense model's accuracy above chance that is kept, over tasks at "
        "which the dense model is above chance by two standard errors; null: there are none."
    )
    cut_requests: int = Field(
        description="Requests that were longer than the context and lost their beginning."
    )


class Continuation(Part):
    """What one model writes after a prompt, from where the other one writes something else."""

    token: str = Field(
        description="Text of the first token that differs; empty if none does, or if the other "
        "model ended later."
    )
    rest: str = Field(description="What follows it.")
    tokens: int = Field(description="Tokens in all, those that both models write included.")
    ended: bool = Field(description="Whether the model ended the text itself.")


class SampleReport(Part):
    """How both models continue a prompt, with the most probable token each time.

    A model may write anything: programs that show these texts must escape them.
    """

    prompt: str
    same: str = Field(description="What both write, from the start to the first difference.")
    same_tokens: int
    dense: Continuation
    pruned: Continuation

    @property
    def dense_text(self) -> str:
        """All that the dense model writes."""
        return self.same + self.dense.token + self.dense.rest

    @property
    def pruned_text(self) -> str:
        """All that the pruned model writes."""
        return self.same + self.pruned.token + self.pruned.rest

    @property
    def differs(self) -> bool:
        """Whether the models write different texts."""
        return self.dense != self.pruned


MeasuredModel = Literal["dense", "pruned"]


class SpeedRun(Part):
    """One measurement of one model."""

    model: MeasuredModel
    first_token_seconds: float = Field(description="From the prompt to the first new token.")
    decode_seconds: float = Field(description="From there to the last one.")


class Spread(Part):
    """The middle of several measurements, and how far they are apart."""

    median: float
    least: float
    most: float


class SpeedFigures(Part):
    """How fast one model is."""

    first_token_seconds: Spread
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    peak_bytes: int = Field(
        description="Most memory while it ran: on an accelerator what is allocated there, on the "
        "CPU resident memory above that of the same process without the model."
    )


class SpeedReport(Part):
    """Both models, each whole in a process of its own, measured in turns on one machine."""

    runtime: str = Field(description="With its version.")
    device: str
    dtype: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    dense: SpeedFigures
    pruned: SpeedFigures
    prefill_gain: float = Field(
        description="Pruned over dense tokens per second: the median of the ratios of the rounds."
    )
    decode_gain: float = Field(description="The same while tokens are written.")
    runs: list[SpeedRun] = Field(description="All measurements, in their order.")


class CalibrationSummary(Part):
    """The text that the statistics were computed on; the spec says where it comes from."""

    tokens: int
    distinct_tokens: int
    least_effective_rank: float | None = Field(
        description="Of the layer whose inputs have the fewest independent directions."
    )
    text_sha256: str


class MemoryFigure(Part):
    """Peak bytes, planned and measured. `measured` is None where the device is not measured."""

    predicted: int
    measured: int | None


class MemorySummary(Part):
    """Peak memory of the pruning process."""

    host_peak_bytes: MemoryFigure
    device_peak_bytes: MemoryFigure
    whole_model_bytes: int = Field(description="What the dense weights alone would occupy.")
    note: str = Field(description="How it was measured.")


class Moved(Part):
    """Bytes that are read and copied."""

    read_bytes: int = Field(description="From the model's files.")
    to_device_bytes: int = Field(description="From host to device.")
    to_host_bytes: int = Field(description="From device to host.")


class PhaseTraffic(Part):
    """What one phase reads and copies; on a CPU what a GPU's would be."""

    name: str
    planned: Moved
    counted: Moved


class SolvesReport(Part):
    """In what curves and repairs were computed."""

    curves: dict[str, int] = Field(description="Sites by the dtype of their damage curve.")
    repairs: dict[str, int] = Field(description="Sites by the dtype of their repair.")


class PhaseTime(Part):
    """Seconds of work in one phase, over all attempts and all workers."""

    name: str
    seconds: float
    predicted_seconds: float | None = Field(
        default=None,
        description="What the same work was predicted to take, by one worker on a device of which "
        "nobody else makes use; null in reports of versions that predicted nothing.",
    )


def predicted_in_all(phases: Iterable[PhaseTime]) -> float | None:
    """What all phases together were predicted to take; None where nothing was predicted."""
    found = [phase.predicted_seconds for phase in phases]
    known = [each for each in found if each is not None]
    return round(sum(known), 3) if known and len(known) == len(found) else None


class ModelCheck(Part):
    """The dense reload check: our forward pass against transformers' on the model's own files.

    Embeddings, the first and the last layer, one of each further kind, final norm and head.
    """

    reference: str = Field(description="Implementation that it was compared with.")
    tokens: int
    layers: list[int] = Field(description="Layers that ran in both.")
    max_relative_difference: float = Field(
        description="Relative to the largest value that a layer adds, or to the largest logit."
    )
    tolerance: float


class Verification(Part):
    """The reload check: written files against the pruned weights that were in memory."""

    reference: str = Field(description="Implementation that reloaded the files.")
    tokens: int
    max_abs_logit_difference: float
    tolerance: float


class ExportReport(Part):
    """A further form of the result, in a folder beside the checkpoint."""

    name: str = Field(description="`gguf`, `gguf_q8_0`, `fp8` or `block_configs`.")
    folder: str
    bytes: int = Field(description="Bytes of all its files.")
    verification: Verification = Field(
        description="Its reload check; for gguf against the weights rounded to 16 bits, for "
        "gguf_q8_0 and fp8 against those rounded to 8."
    )
    perplexity: float | None = Field(
        default=None,
        description="Of an export in 8 bits, with its weights as they are read again and "
        "activations that are not quantised; null for others, or if none was asked for.",
    )


class FileEntry(Part):
    """One published file, by its path under the output."""

    name: str
    bytes: int
    sha256: str


class PublishedManifest(BaseModel):
    """`strucprune.json`, written last: every file of a complete output with its digest."""

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1]
    files: list[FileEntry]


class Report(Part):
    """The results, figures and circumstances of one finished job."""

    schema_version: str = SCHEMA_VERSION
    job_fingerprint: str = Field(
        default="",
        description="SHA-256 over what determines the result: specification, model files, texts.",
    )
    created_at: str = Field(description="UTC, ISO 8601.")
    model: ModelSummary
    spec: dict[str, Any] = Field(description="The JobSpec as it ran.")
    environment: Environment
    before: SizeSummary
    after: SizeSummary
    sparsity: SparsitySummary
    target: TargetReport | None = Field(
        default=None, description="Null: the job asked for no size."
    )
    predicted_speed: PredictedSpeed | None = Field(
        default=None, description="Null: the job asked for no speedup."
    )
    loading: list[Loading] = Field(
        default_factory=list, description="How runtimes load the result, as its README.md says."
    )
    search: SearchReport | None = Field(
        default=None, description="Null: the job did not look for its sparsity."
    )
    layers: list[LayerReport]
    blocks: list[BlockReport] = Field(
        default_factory=list, description="Blocks that went whole, in the order of their removal."
    )
    rounds: list[RoundReport] = Field(default_factory=list, description="Allocations, in order.")
    distillation: DistillationReport | None = Field(
        default=None, description="Null: not asked for."
    )
    calibration: CalibrationSummary | None = Field(
        default=None, description="Null: of a report before 1.1."
    )
    perplexity: PerplexitySummary | None
    tasks: TasksSummary | None = Field(default=None, description="Null: not asked for.")
    samples: list[SampleReport] = Field(
        default_factory=list, description="Empty: `evaluation.samples` was not asked for."
    )
    speed: SpeedReport | None = Field(
        default=None, description="Null: not asked for, or not measured; then a warning says why."
    )
    memory: MemorySummary
    traffic: list[PhaseTraffic] = Field(
        default_factory=list, description="Empty in reports of versions that did not count it."
    )
    solves: SolvesReport | None = Field(
        default=None, description="Null: of a job that solves nothing, or of an earlier version."
    )
    phases: list[PhaseTime]
    model_check: ModelCheck | None = Field(
        default=None, description="Null in reports of versions that had no such check."
    )
    verification: Verification
    exports: list[ExportReport] = Field(default_factory=list)
    files: list[FileEntry]
    warnings: list[str] = Field(default_factory=list)


def largest_known(values: Iterable[float | None]) -> float | None:
    """The largest of values of which some may be unknown; None if all are."""
    return max((value for value in values if value is not None), default=None)


def has_few_tokens(site: SiteReport) -> bool:
    """Whether fewer tokens reached a site than it has columns, so that a part is assumed."""
    return site.calibration_tokens < site.columns


def layers_with_experts(layers: Iterable[LayerReport]) -> list[tuple[LayerReport, ExpertsReport]]:
    """The layers whose experts a job removed some of."""
    return [(layer, layer.experts) for layer in layers if layer.experts is not None]


def removes_experts_alone(report: Report) -> bool:
    """Whether a job removed experts and nothing else."""
    pruning = report.spec.get("pruning")  # A report may be anybody's.
    return isinstance(pruning, dict) and pruning.get("structures") == ["experts"]
