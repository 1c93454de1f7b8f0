"""`report`: gather what all units left behind into report.json and report.html."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from strucprune_core import __version__
from strucprune_core.calibration.degeneracy import TokenCounts
from strucprune_core.models.own_head import own_head_warning
from strucprune_core.plan.deviations import batch_warning, sparsity_warning
from strucprune_core.plan.estimate import estimate_job, size_of
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.inspection import ModelFacts
from strucprune_core.plan.sites import PlannedSite
from strucprune_core.report.document import (
    REPORT_HTML,
    REPORT_JSON,
    CalibrationSummary,
    DistillationReport,
    Environment,
    ExportReport,
    FileEntry,
    LayerReport,
    MemoryFigure,
    MemorySummary,
    ModelCheck,
    ModelSummary,
    PerplexitySummary,
    PhaseTime,
    RecoveryReport,
    Report,
    RoundReport,
    SiteReport,
    SizeSummary,
    SparsitySummary,
    Verification,
    largest_known,
)
from strucprune_core.report.html import render_html
from strucprune_core.run.context import Job
from strucprune_core.run.progress import Phase
from strucprune_core.run.report_warnings import (
    few_tokens_warning,
    layer_rank,
    rank_warning,
    retry_warnings,
    text_warnings,
)
from strucprune_core.run.steps.assemble import pruned_checkpoint
from strucprune_core.run.steps.exports import exported, published, unit_files
from strucprune_core.run.workspace import Draft, Manifest
from strucprune_core.spec import Export
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.overlay import OverlayStore


def report(job: Job, unit: Unit, draft: Draft) -> None:
    """Write report.json and report.html."""
    document = build_report(job, unit)
    draft.path(REPORT_JSON).write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    draft.path(REPORT_HTML).write_text(render_html(document), encoding="utf-8")


def build_report(job: Job, unit: Unit) -> Report:
    """The report of a job whose units before `report` are all finished."""
    before, after = _sizes(job)
    asked, reached = job.spec.pruning.sparsity, _reached(job)
    layers = [_layer(job, layer) for layer in range(job.config.layers)]
    return Report(
        job_fingerprint=job.fingerprint,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=_model(job),
        spec=job.spec.model_dump(mode="json"),
        environment=environment_of(job.device),
        before=before,
        after=after,
        sparsity=SparsitySummary(
            requested=asked,
            reached=reached,
            channels_removed=before.ffn_channels - after.ffn_channels,
            kv_heads_removed=before.kv_heads - after.kv_heads,
            query_heads_removed=before.query_heads - after.query_heads,
            parameters_removed=before.parameters - after.parameters,
        ),
        layers=layers,
        rounds=_rounds(job),
        distillation=_distillation(job),
        calibration=_calibration(job, layers),
        perplexity=_perplexity(job),
        memory=_memory(job),
        phases=_phases(job),
        model_check=ModelCheck(**job.workspace.values("model_check")),
        verification=Verification(**job.workspace.values("verify")),
        exports=[_export(job, export) for export in job.spec.pruning.exports],
        files=published_files(job, published(job)),
        warnings=[
            *_model_warnings(job),
            *sparsity_warning(asked, reached),
            *batch_warning(job.spec),
            *text_warnings(job.spec, job.config.vocab_size, _texts(job)),
            *rank_warning(layers),
            *few_tokens_warning(layers),
            *retry_warnings(layers),
        ],
    )


def _model_warnings(job: Job) -> list[str]:
    """What is to be known of the dense model."""
    own_head = own_head_warning(job.index.config, job.config)
    return [] if own_head is None else [own_head]


def _manifests(job: Job) -> list[Manifest]:
    found = (job.workspace.manifest(unit.name) for unit in job.graph)
    return [manifest for manifest in found if manifest is not None]


def _sizes(job: Job) -> tuple[SizeSummary, SizeSummary]:
    """Sizes before and after: counts from shapes, bytes from the files themselves."""
    stored_bytes = max(1, job.index.total_bytes // max(1, job.dense_parameters))
    before = size_of(job.config, dtype_bytes=stored_bytes)
    after = size_of(job.pruned_config, dtype_bytes=stored_bytes)
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
        intermediate_size=max(config.intermediate_sizes),
        vocab_size=config.vocab_size,
        dtype=job.index.tensors[job.config.names.embedding].dtype,
        digest=job.index.digest(),
    )


def environment_of(device: torch.device) -> Environment:
    """Where this process computes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Environment(
        strucprune=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        device=name,
        platform=platform.platform(),
        threads=torch.get_num_threads() or os.cpu_count() or 1,
    )


def _reached(job: Job) -> float:
    """Share of the prunable structures' parameters that went."""
    places = list(zip(job.planned, job.widths, strict=True))
    total = sum(place.site.structures * place.site.parameters for place, _ in places)
    left = sum(width * place.site.parameters for place, width in places)
    return 1.0 - left / total


def _layer(job: Job, layer: int) -> LayerReport:
    units = (job.workspace.manifest(f"{kind}.{layer}") for kind in ("capture", "curve", "solve"))
    before, after = job.config.blocks[layer], job.pruned_config.blocks[layer]
    sites = _sites(job, layer)
    return LayerReport(
        index=layer,
        width_before=sum(before.ffn_widths),
        width_after=sum(after.ffn_widths),
        query_heads_before=before.query_heads,
        query_heads_after=after.query_heads,
        kv_heads_before=before.kv_heads,
        kv_heads_after=after.kv_heads,
        sites=sites,
        recovery=_recovery(job, layer),
        energy=max(site.energy for site in sites),
        predicted_damage=sum(site.predicted_damage for site in sites),
        reconstruction_error=largest_known(site.reconstruction_error for site in sites),
        damping=max(site.damping for site in sites),
        damping_retries=max(site.damping_retries for site in sites),
        seconds=sum(manifest.seconds for manifest in units if manifest is not None),
    )


def _recovery(job: Job, layer: int) -> RecoveryReport | None:
    if job.spec.pruning.recover is None:
        return None
    return RecoveryReport(**job.workspace.values(f"recover.{layer}"))


def _distillation(job: Job) -> DistillationReport | None:
    if job.spec.pruning.distill is None:
        return None
    manifests = [m for m in _manifests(job) if m.unit.startswith("distill.")]
    first, last = manifests[0].values, manifests[-1].values
    return DistillationReport(
        status=last["status"],
        steps=job.spec.pruning.distill.steps,
        kl_before=first["kl_before"],
        kl_after=last["kl_after"],
        losses=[loss for manifest in manifests for loss in manifest.values["losses"]],
        seconds=sum(manifest.seconds for manifest in manifests),
    )


def _sites(job: Job, layer: int) -> list[SiteReport]:
    allocation = job.workspace.values("allocate")
    solved = job.workspace.values(f"solve.{layer}")["sites"]
    return [
        SiteReport(
            name=place.site.name,
            structures_before=place.site.structures,
            structures_after=allocation["widths"][number],
            energy=allocation["energies"][number],
            predicted_damage=allocation["predicted_damages"][number],
            **_statistics(job, place),
            **solved[place.site.name],
        )
        for number, place in enumerate(job.planned)
        if place.layer == layer
    ]


def _statistics(job: Job, place: PlannedSite) -> dict[str, Any]:
    """What a site's report says of its statistics."""
    found = job.statistics(place.layer, place.site)
    return {
        "calibration_tokens": found.tokens,
        "columns": found.columns,
        "measured_share": found.measured_share,
        "effective_rank": found.effective_rank,
    }


def _rounds(job: Job) -> list[RoundReport]:
    allocation = job.workspace.values("allocate")
    rounds = range(1, job.spec.pruning.rounds + 1)
    kls = allocation["kls"] or [None]
    return [
        _round(job.workspace.values(f"price.{number}"), kl, used=number == allocation["round"])
        for number, kl in zip(rounds, kls, strict=True)
    ]


def _round(values: dict[str, Any], kl: float | None, *, used: bool) -> RoundReport:
    return RoundReport(
        price=values["price"],
        temperature=values["temperature"],
        predicted_damage=sum(values["predicted_damages"]),
        widths=values["widths"],
        kl=kl,
        used=used,
    )


def _texts(job: Job) -> dict[str, Any]:
    """What the units `tokens` and `tokens.evaluation` found out about the texts."""
    values = dict(job.workspace.values("tokens"))
    if job.spec.evaluation is not None:
        values |= job.workspace.values("tokens.evaluation")
    return values


def _calibration(job: Job, layers: list[LayerReport]) -> CalibrationSummary:
    found = job.workspace.values("tokens")
    counts = TokenCounts(**found["calibration_tokens"])
    return CalibrationSummary(
        tokens=counts.tokens,
        distinct_tokens=counts.distinct,
        least_effective_rank=min(
            (rank for layer in layers if (rank := layer_rank(layer)) is not None), default=None
        ),
        text_sha256=found["calibration_sha256"],
    )


def _perplexity(job: Job) -> PerplexitySummary | None:
    evaluation = job.spec.evaluation
    if evaluation is None:
        return None
    before = job.workspace.values("evaluate.dense")["perplexity"]
    after = job.workspace.values("evaluate.pruned")["perplexity"]
    return PerplexitySummary(
        before=before,
        after=after,
        ratio=after / before,
        sequences=evaluation.sequences,
        sequence_length=evaluation.sequence_length,
        tokens=evaluation.sequences * (evaluation.sequence_length - 1),
        text_uri=evaluation.uri,
        text_sha256=job.workspace.values("tokens.evaluation")["evaluation_sha256"],
    )


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
        whole_model_bytes=job.dense_parameters * 4,
        note="Host: anonymous resident memory, sampled. Device: the CUDA allocator's peak; on a "
        "CPU the device is the host. Whole model: its weights in float32, as computed with.",
    )


def _phases(job: Job) -> list[PhaseTime]:
    seconds = dict.fromkeys(Phase, 0.0)
    for unit in job.graph:
        manifest = job.workspace.manifest(unit.name)
        seconds[unit.phase] += manifest.seconds if manifest is not None else 0.0
    return [
        PhaseTime(name=phase.value, seconds=round(spent, 3))
        for phase, spent in seconds.items()
        if spent > 0.0
    ]


def _export(job: Job, export: Export) -> ExportReport:
    store = exported(job, export)
    sizes = [len(data) for data in store.contents.values()]
    sizes += [path.stat().st_size for path in store.paths.values()]
    check = Verification(**job.workspace.values(f"check.{export}"))
    return ExportReport(name=export, folder=export, bytes=sum(sizes), verification=check)


def published_files(job: Job, result: OverlayStore) -> list[FileEntry]:
    """The files that are published with their digests."""
    entries = [
        FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data))
        for name, data in result.contents.items()
    ]
    for name, unit in unit_files(job).items():
        manifest = job.workspace.manifest(unit)
        assert manifest is not None  # noqa: S101 - the graph runs these before report
        (stored,) = manifest.files.values()
        entries.append(FileEntry(name=name, bytes=stored.bytes, sha256=stored.sha256))
    return sorted(entries, key=lambda entry: entry.name)
