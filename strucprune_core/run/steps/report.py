"""`report`: gather what all units left behind into report.json and report.html."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.method.allocation.loss_search import MOST_LOSS, Try
from strucprune_core.method.linalg.transfers import NOTHING, Transferred
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import removed_share
from strucprune_core.models.own_head import own_head_warning
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan import shared_budget
from strucprune_core.plan.blocks import removable_parameters
from strucprune_core.plan.deviations import (
    batch_warning,
    drafting_warning,
    family_warning,
    left_wide_warning,
    quantised_warning,
    sparsity_warning,
    tokenizer_warning,
)
from strucprune_core.plan.estimate import (
    as_moved,
    bytes_as,
    drafting_bytes,
    estimate_job,
    planned_traffic,
    size_of,
)
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import Unit, distill_units
from strucprune_core.plan.precision import rounding_warning
from strucprune_core.plan.predicted_speed import (
    alignment_warning,
    predicted_speed,
    slower_warning,
)
from strucprune_core.plan.search import searched
from strucprune_core.plan.sites import PlannedSite, requested_sparsity
from strucprune_core.plan.speed import speed_warning
from strucprune_core.report.document import (
    AdapterSummary,
    BlockReport,
    CalibrationSummary,
    DistillationReport,
    ExpertsReport,
    ExportReport,
    LayerReport,
    MemoryFigure,
    MemorySummary,
    ModelCheck,
    ModelSummary,
    PerplexitySummary,
    PhaseTraffic,
    RecoveryReport,
    RefitReport,
    RepairReport,
    Report,
    RoundReport,
    SampleReport,
    SearchReport,
    SiteReport,
    SizeSummary,
    SolvesReport,
    SparsitySummary,
    SpeedReport,
    TargetReport,
    TasksSummary,
    TryReport,
    Verification,
    largest_known,
)
from strucprune_core.report.html import render_html
from strucprune_core.report.task_retention import retention
from strucprune_core.run import artifacts
from strucprune_core.run.card import card_of, loading_of
from strucprune_core.run.context import Job
from strucprune_core.run.expert_choice import scores_of, seen_of
from strucprune_core.run.manifest import Manifest
from strucprune_core.run.measured_site import MeasuredSite
from strucprune_core.run.phase_times import phase_times
from strucprune_core.run.progress import Phase
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.report_warnings import (
    divergence_warning,
    few_expert_tokens_warning,
    few_tokens_warning,
    layer_rank,
    rank_warning,
    retry_warnings,
    target_warning,
    text_warnings,
)
from strucprune_core.run.result_files import exported, file_entries, pruned_checkpoint, result
from strucprune_core.run.search import tries_before
from strucprune_core.run.solutions import recovered_roles
from strucprune_core.run.speed_figures import speed_report
from strucprune_core.run.steps.tasks import task_scores
from strucprune_core.run.workspace import Draft
from strucprune_core.spec import QUANTISED_EXPORTS, Export

_TASK_UNITS = (artifacts.Tasks("dense"), artifacts.Tasks("pruned"))


def report(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the report as a document and as a page, and the model card."""
    document = _report(job)
    card = card_of(job, document)
    files = file_entries(job, result(job, card))
    document = document.model_copy(update={"files": files})
    draft.path(artifacts.Report.card).write_bytes(card)
    text = document.model_dump_json(indent=2) + "\n"
    draft.path(artifacts.Report.json).write_text(text, encoding="utf-8")
    draft.path(artifacts.Report.html).write_text(render_html(document), encoding="utf-8")


def _report(job: Job) -> Report:
    """The report of a job whose units before `report` are all finished, without its files."""
    pruned = PrunedModel(job)
    before, after = _sizes(job, pruned)
    asked = requested_sparsity(job.spec.pruning, job.config)
    reached = _reached(job, pruned)
    layers, target = _layers(job, pruned), _target(job, pruned, after)
    facts = ModelFacts(job.index, job.config)
    predicted = predicted_speed(job.spec, facts, pruned.in_files)
    return Report(
        job_fingerprint=job.fingerprint,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=_model(job),
        spec=job.spec.model_dump(mode="json"),
        environment=job.environment,
        before=before,
        after=after,
        sparsity=SparsitySummary(
            requested=asked,
            reached=reached,
            channels_removed=before.ffn_channels - after.ffn_channels,
            kv_heads_removed=before.kv_heads - after.kv_heads,
            query_heads_removed=before.query_heads - after.query_heads,
            experts_removed=before.experts - after.experts,
            blocks_removed=sum(len(each.block.kinds) for each in _removed_blocks(job)),
            parameters_removed=before.parameters - after.parameters,
        ),
        target=target,
        predicted_speed=predicted,
        loading=loading_of(job),
        search=_search(job),
        layers=layers,
        blocks=_blocks(job),
        rounds=_rounds(job),
        distillation=_distillation(job),
        calibration=_calibration(job, layers),
        perplexity=_perplexity(job),
        samples=_samples(job),
        tasks=_tasks(job),
        speed=_speed(job),
        memory=_memory(job),
        traffic=_traffic(job),
        solves=_solves(job),
        phases=phase_times(_whole_graph(job), job.workspace, job.predicted_seconds),
        model_check=ModelCheck(**asdict(job.units.values(artifacts.ModelCheck()))),
        verification=_verification(job, artifacts.Verify()),
        exports=[_export(job, export) for export in job.spec.pruning.exports],
        files=[],
        warnings=[
            *family_warning(job.spec.pruning, job.config),
            *_model_warnings(job),
            *drafting_warning(job.spec.pruning, job.config),
            *sparsity_warning(asked, reached),
            *target_warning(target),
            *alignment_warning(job.spec.pruning),
            *slower_warning(predicted),
            *batch_warning(job.spec),
            *_left_wide(job, pruned),
            *quantised_warning(job.spec, job.index),
            *rounding_warning([job.precision], facts),
            *tokenizer_warning(job.index.file_versions),
            *text_warnings(job.spec, job.config.vocab_size, *_texts(job)),
            *rank_warning(layers),
            *few_tokens_warning(layers),
            *few_expert_tokens_warning(layers),
            *_divergence_warnings(job),
            *retry_warnings(layers),
            *_speed_warnings(job),
        ],
    )


def _solves(job: Job) -> SolvesReport | None:
    """In what the sites were computed; a workspace of an earlier version does not say it."""
    layers = sorted({place.layer for place in job.planned})
    if job.removes_experts_alone or not layers:
        return None
    units = job.units
    curves = Counter(
        dtype for layer in layers for dtype in units.values(artifacts.Curve(layer)).dtypes.values()
    )
    repairs = Counter(
        site.dtype
        for layer in layers
        for site in units.values(artifacts.Solve(layer)).sites.values()
    )
    return SolvesReport(curves=dict(curves), repairs=dict(repairs))


def _target(job: Job, pruned: PrunedModel, after: SizeSummary) -> TargetReport | None:
    """What the target counts, of the result; None of one that counts nothing."""
    target = job.spec.pruning.target
    if target is None or target.kind == "speedup" or job.spec.tries:
        return None
    if target.kind == "parameters":
        reached = after.parameters
    elif target.export is not None:
        reached = bytes_as(target.export, pruned.in_files, ModelFacts(job.index, job.config))
    else:
        reached = after.bytes
    if target.kind == "memory_bytes":
        tokens = target.context_tokens * target.batch_sequences
        reached += tokens * (after.kv_cache_bytes_per_token or 0)
    return TargetReport(kind=target.kind, most=target.most, reached=reached)


def _search(job: Job) -> SearchReport | None:
    """The sparsities that were tried."""
    ratio = job.spec.pruning.max_perplexity_ratio
    if ratio is None:
        return None
    tries = tries_before(job, job.spec.tries + 1)
    return SearchReport(max_perplexity_ratio=ratio, tries=[_try(each) for each in tries])


def _try(done: Try) -> TryReport:
    measured = math.exp(done.measured) if done.measured < MOST_LOSS else None
    return TryReport(
        sparsity=done.sparsity,
        predicted_ratio=math.exp(min(done.predicted, MOST_LOSS)),
        perplexity_ratio=measured,
    )


def _model_warnings(job: Job) -> list[str]:
    """What is to be known of the dense model."""
    own_head = own_head_warning(job.index.config, job.config)
    return [] if own_head is None else [own_head]


def _divergence_warnings(job: Job) -> list[str]:
    """Whether the experts that went were missed."""
    if not job.removes_experts:
        return []
    return divergence_warning(job.units.values(artifacts.Divergence()).kl)


def _whole_graph(job: Job) -> list[Unit]:
    """All units of the job, also those that tried sparsities."""
    return searched(job.graph, job.spec.tries) if job.spec.tries else job.graph


def _manifests(job: Job) -> list[Manifest]:
    manifests = (job.workspace.manifest(unit.name) for unit in _whole_graph(job))
    return [manifest for manifest in manifests if manifest is not None]


def _dense_parameters(job: Job) -> int:
    return _parameters(job.config)


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in expected_tensors(config).values())


def _sizes(job: Job, pruned: PrunedModel) -> tuple[SizeSummary, SizeSummary]:
    """Sizes before and after: counts from shapes, bytes from the files themselves."""
    of_model = job.index.read_bytes - drafting_bytes(job.config, job.index)
    stored_bytes = max(1, of_model // max(1, _dense_parameters(job)))
    before = size_of(job.config, dtype_bytes=stored_bytes)
    after = size_of(pruned.config, dtype_bytes=stored_bytes)
    written = sum(path.stat().st_size for path in pruned_checkpoint(job).paths.values())
    return (
        before.model_copy(update={"bytes": job.index.total_bytes}),
        after.model_copy(update={"bytes": written}),
    )


def _model(job: Job) -> ModelSummary:
    config = job.config
    return ModelSummary(
        uri=job.spec.model.uri,
        architecture=config.model_type,
        layers=config.layers,
        hidden_size=config.hidden_size,
        intermediate_size=max(config.intermediate_sizes, default=0),
        vocab_size=config.vocab_size,
        dtype=job.index.tensors[job.config.names.embedding].dtype,
        digest=job.index.digest(),
        adapter=_adapter(job),
    )


def _adapter(job: Job) -> AdapterSummary | None:
    adapter, uri = job.index.adapter, job.spec.model.adapter_uri
    if adapter is None or uri is None:
        return None
    return AdapterSummary(
        uri=uri,
        version=adapter.version,
        rank=adapter.rank,
        alpha=adapter.alpha,
        modules=list(adapter.modules),
        replaced=list(adapter.replaced),
    )


def _reached(job: Job, pruned: PrunedModel) -> float:
    """Share of the prunable structures' parameters that went; of experts, of their number."""
    if job.removes_experts_alone:
        return removed_share(job.config, pruned.experts)
    if job.removes_experts:
        gone = _dense_parameters(job) - _parameters(pruned.config)
        return gone / shared_budget.removable_parameters(job.config, job.spec.pruning)
    if job.spec.pruning.removes_blocks:
        gone = _dense_parameters(job) - _parameters(pruned.config)
        return gone / removable_parameters(job.config, job.spec.pruning)
    places = list(zip(job.planned, pruned.widths, strict=True))
    total = sum(place.site.structures * place.site.parameters for place, _ in places)
    left = sum(width * place.site.parameters for place, width in places)
    return 1.0 - left / total


def _layers(job: Job, pruned: PrunedModel) -> list[LayerReport]:
    if job.removes_experts_alone:
        return [_expert_layer(job, layer, kept) for layer, kept in enumerate(pruned.experts)]
    sites: list[list[SiteReport]] = [[] for _ in job.config.blocks]
    for place, site in zip(job.planned, _sites(job), strict=True):
        sites[place.layer].append(site)
    return [_layer(job, pruned, layer, of_layer) for layer, of_layer in enumerate(sites)]


def _expert_layer(job: Job, layer: int, kept: list[int]) -> LayerReport:
    """A layer of a job that removes experts, which has no sites."""
    block, unit = job.config.blocks[layer], artifacts.Route(layer)
    chosen = job.units.values(artifacts.Select())
    manifest = job.workspace.manifest(unit.unit)
    return LayerReport(
        index=layer,
        width_before=sum(block.ffn_widths),
        width_after=sum(block.ffn_widths),
        query_heads_before=block.query_heads,
        query_heads_after=block.query_heads,
        kv_heads_before=block.kv_heads,
        kv_heads_after=block.kv_heads,
        sites=[],
        experts=_experts(job, layer, kept),
        energy=chosen.energies[layer],
        predicted_damage=chosen.damages[layer],
        reconstruction_error=None,
        damping=0.0,
        damping_retries=0,
        seconds=0.0 if manifest is None else manifest.seconds,
    )


def _experts(job: Job, layer: int, kept: list[int]) -> ExpertsReport | None:
    """What became of a layer's experts; None if it has none."""
    if not kept:
        return None
    values = seen_of(job, layer)
    return ExpertsReport(
        removed=sorted(set(range(len(values.tokens))) - set(kept)),
        calibration_tokens=values.tokens,
        scores=scores_of(job.spec.pruning, values),
        repair=_repair(job, layer),
    )


def _repair(job: Job, layer: int) -> RepairReport | None:
    if not job.repairs_experts:
        return None
    return RepairReport(**asdict(job.units.values(artifacts.Repair(layer))))


def _layer(job: Job, pruned: PrunedModel, layer: int, sites: list[SiteReport]) -> LayerReport:
    before, after = job.config.blocks[layer], pruned.config.blocks[layer]
    units = (artifacts.Capture(layer), artifacts.Curve(layer), artifacts.Solve(layer))
    manifests = (job.workspace.manifest(each.unit) for each in units)
    return LayerReport(
        index=layer,
        width_before=sum(before.ffn_widths),
        width_after=sum(after.ffn_widths),
        query_heads_before=before.query_heads,
        query_heads_after=after.query_heads,
        kv_heads_before=before.kv_heads,
        kv_heads_after=after.kv_heads,
        sites=sites,
        experts=_experts(job, layer, pruned.experts[layer]) if job.removes_experts else None,
        recovery=_recovery(job, pruned, layer),
        refit=_refit(job, layer),
        energy=max((site.energy for site in sites), default=0.0),
        predicted_damage=sum(site.predicted_damage for site in sites),
        reconstruction_error=largest_known(site.reconstruction_error for site in sites),
        damping=max((site.damping for site in sites), default=0.0),
        damping_retries=max((site.damping_retries for site in sites), default=0),
        seconds=sum(manifest.seconds for manifest in manifests if manifest is not None),
    )


def _refit(job: Job, layer: int) -> RefitReport | None:
    if not job.refits:
        return None
    values = job.units.values(artifacts.Refit(layer))
    if not values.refitted:
        return None
    return RefitReport(
        error_before=values.error_before, error_after=values.error_after, taken=values.taken
    )


def _recovery(job: Job, pruned: PrunedModel, layer: int) -> RecoveryReport | None:
    if not job.recovers or not recovered_roles(pruned.config, layer):
        return None
    return RecoveryReport(**asdict(job.units.values(artifacts.Recover(layer))))


def _distillation(job: Job) -> DistillationReport | None:
    if not job.distill_steps:
        return None
    units = [artifacts.Distill(number) for number in range(len(distill_units(job.distill_steps)))]
    values = [job.units.values(unit) for unit in units]
    manifests = (job.workspace.manifest(unit.unit) for unit in units)
    first, last = values[0], values[-1]
    assert last.status is not None  # noqa: S101 - the last unit judges what was trained
    return DistillationReport(
        status=last.status,
        steps=job.distill_steps,
        kl_before=first.kl_before,
        kl_after=last.kl_after,
        losses=[loss for each in values for loss in each.losses],
        seconds=sum(manifest.seconds for manifest in manifests if manifest is not None),
    )


def _sites(job: Job) -> list[SiteReport]:
    """Every planned site, in order."""
    allocation = job.units.values(artifacts.Allocate())
    return [
        SiteReport(
            name=place.site.name,
            structures_before=place.site.structures,
            structures_after=allocation.widths[number],
            energy=allocation.energies[number],
            predicted_damage=allocation.predicted_damages[number],
            **_statistics(job, place),
            **_solved(job, place),
        )
        for number, place in enumerate(job.planned)
    ]


def _solved(job: Job, place: PlannedSite) -> dict[str, Any]:
    """What a site's report says of its solution."""
    solved = job.units.values(artifacts.Solve(place.layer)).sites.get(place.site.name)
    if solved is None:  # It went with its block.
        return {"reconstruction_error": None, "damping": 0.0, "damping_retries": 0}
    return asdict(solved)


def _statistics(job: Job, place: PlannedSite) -> dict[str, Any]:
    """What a site's report says of its statistics."""
    statistics = MeasuredSite(job, place.layer, place.site).statistics
    return {
        "calibration_tokens": statistics.tokens,
        "columns": statistics.columns,
        "measured_share": statistics.measured_share,
        "effective_rank": statistics.effective_rank,
    }


def _removed_blocks(job: Job) -> list[artifacts.BlockLoss]:
    """Blocks that went, in the order of their removal."""
    if not job.spec.pruning.removes_blocks:
        return []
    return job.units.values(artifacts.Allocate()).blocks


def _blocks(job: Job) -> list[BlockReport]:
    blocks = _removed_blocks(job)
    return [
        BlockReport(
            layer=each.block.layer,
            structure=each.block.structure,
            parameters=each.parameters,
            kl=kl,
        )
        for each, kl in zip(blocks, accumulate(each.added for each in blocks), strict=True)
    ]


def _rounds(job: Job) -> list[RoundReport]:
    if job.removes_experts_alone:
        return [_removal(job)]
    if job.spec.pruning.removes_blocks_alone:
        return []
    allocation = job.units.values(artifacts.Allocate())
    if job.spec.pruning.removes_blocks:  # The only round's price is of a model with all blocks.
        return [_round(allocation, None, used=True)]
    if job.removes_experts:
        kl = job.units.values(artifacts.Divergence()).kl
        beside = _round(allocation, kl, used=True)
        loss = beside.predicted_damage + allocation.expert_loss
        return [beside.model_copy(update={"predicted_damage": loss})]
    rounds = range(1, job.spec.pruning.rounds + 1)
    kls: list[float | None] = [*allocation.kls] or [None]
    return [
        _round(job.units.values(artifacts.Price(number)), kl, used=number == allocation.round)
        for number, kl in zip(rounds, kls, strict=True)
    ]


def _removal(job: Job) -> RoundReport:
    """The one choice of a job that removes experts."""
    chosen = job.units.values(artifacts.Select())
    return RoundReport(
        price=chosen.price,
        temperature=chosen.temperature,
        predicted_damage=sum(chosen.damages),
        widths=[len(kept) for kept in chosen.kept],
        kl=job.units.values(artifacts.Divergence()).kl,
        used=True,
    )


def _round(values: artifacts.PriceValues, kl: float | None, *, used: bool) -> RoundReport:
    return RoundReport(
        price=values.price,
        temperature=values.temperature,
        predicted_damage=sum(values.predicted_damages),
        widths=[*values.widths],
        kl=kl,
        used=used,
    )


def _texts(
    job: Job,
) -> tuple[artifacts.TokensValues, artifacts.EvaluationTokensValues | None]:
    """What is known of the calibration text, and of the evaluation text if there is one."""
    calibration = job.units.values(artifacts.Tokens())
    if job.spec.evaluation is None:
        return calibration, None
    return calibration, job.units.values(artifacts.EvaluationTokens())


def _calibration(job: Job, layers: list[LayerReport]) -> CalibrationSummary:
    text = job.units.values(artifacts.Tokens())
    return CalibrationSummary(
        tokens=text.calibration_tokens.tokens,
        distinct_tokens=text.calibration_tokens.distinct,
        least_effective_rank=min(
            (rank for layer in layers if (rank := layer_rank(layer)) is not None), default=None
        ),
        text_sha256=text.calibration_sha256,
    )


def _perplexity(job: Job) -> PerplexitySummary | None:
    evaluation = job.spec.evaluation
    if evaluation is None:
        return None
    before = job.units.values(artifacts.Evaluate("dense")).perplexity
    after = job.units.values(artifacts.Evaluate("pruned")).perplexity
    if not math.isfinite(after):  # Of a size that is not published; JSON has no such number.
        return None
    return PerplexitySummary(
        before=before,
        after=after,
        ratio=after / before,
        sequences=evaluation.sequences,
        sequence_length=evaluation.sequence_length,
        tokens=evaluation.sequences * (evaluation.sequence_length - 1),
        text_uri=evaluation.uri,
        text_sha256=job.units.values(artifacts.EvaluationTokens()).evaluation_sha256,
    )


def _tasks(job: Job) -> TasksSummary | None:
    if not job.spec.judges_by_tasks:
        return None
    dense, pruned = (job.units.values(each) for each in _TASK_UNITS)
    before, after = task_scores(dense), task_scores(pruned)
    return TasksSummary(
        harness=dense.harness,
        dense=before,
        pruned=after,
        retention=retention(before, after),
        cut_requests=dense.cut_requests,
    )


def _samples(job: Job) -> list[SampleReport]:
    if not job.spec.sampled_prompts:
        return []
    compared = job.units.values(artifacts.Samples("pruned")).compared
    return [SampleReport.model_validate(each) for each in compared]


def _speed(job: Job) -> SpeedReport | None:
    values = _speed_values(job)
    return None if values is None or values.not_measured is not None else speed_report(values)


def _speed_values(job: Job) -> artifacts.SpeedValues | None:
    return job.units.values(artifacts.Speed()) if job.spec.measures_speed else None


def _speed_warnings(job: Job) -> list[str]:
    values = _speed_values(job)
    return [] if values is None else speed_warning(values.not_measured)


def _memory(job: Job) -> MemorySummary:
    estimate = estimate_job(job.spec, ModelFacts(job.index, job.config))
    manifests = _manifests(job)
    on_device = [m.device_peak_bytes for m in manifests if m.device_peak_bytes is not None]
    host = max(manifest.host_peak_bytes for manifest in manifests)
    return MemorySummary(
        host_peak_bytes=MemoryFigure(predicted=estimate.host_peak_bytes, measured=host),
        device_peak_bytes=MemoryFigure(
            predicted=estimate.device_peak_bytes, measured=max(on_device, default=None)
        ),
        whole_model_bytes=_dense_parameters(job) * 4,
        note="Host: anonymous resident memory, sampled. Device: the CUDA allocator's peak; on a "
        "CPU the device is the host. Whole model: its weights in float32.",
    )


def _traffic(job: Job) -> list[PhaseTraffic]:
    """What each phase moved, beside its plan; a CPU counts as if it were a device."""
    counted: dict[str, Transferred] = {}
    for unit in _whole_graph(job):
        manifest = job.workspace.manifest(unit.name)
        if manifest is not None and any(manifest.transferred):
            before = counted.get(unit.phase.value, NOTHING)
            counted[unit.phase.value] = before.plus(manifest.transferred)
    planned = planned_traffic(job.spec, ModelFacts(job.index, job.config), job.plan)
    return [
        PhaseTraffic(
            name=phase.value,
            planned=planned.get(phase.value, as_moved(NOTHING)),
            counted=as_moved(counted.get(phase.value, NOTHING)),
        )
        for phase in Phase
        if phase.value in planned or phase.value in counted
    ]


def _export(job: Job, export: Export) -> ExportReport:
    store = exported(job, export)
    sizes = [len(data) for data in store.contents.values()]
    sizes += [path.stat().st_size for path in store.paths.values()]
    measured = export in QUANTISED_EXPORTS and job.spec.evaluation is not None
    return ExportReport(
        name=export,
        folder=export,
        bytes=sum(sizes),
        verification=_verification(job, artifacts.Check(export)),
        perplexity=job.units.values(artifacts.Evaluate(export)).perplexity if measured else None,
    )


def _left_wide(job: Job, pruned: PrunedModel) -> list[str]:
    """Matrices that an export for llama.cpp could not quantise."""
    if "gguf_q8_0" not in job.spec.pruning.exports:
        return []
    return left_wide_warning(plan_tensors(pruned.in_files, pruned.stored_dtype, quantised=True))


def _verification(job: Job, unit: artifacts.Verify | artifacts.Check) -> Verification:
    return Verification(**asdict(job.units.values(unit)))
