"""Reports of jobs that never ran: of any depth, with figures that are made up."""

from __future__ import annotations

import math
from typing import Any

from strucprune_core.report.document import (
    Continuation,
    Environment,
    FileEntry,
    LayerReport,
    MemoryFigure,
    MemorySummary,
    ModelCheck,
    ModelSummary,
    PerplexitySummary,
    PhaseTime,
    PredictedSpeed,
    Report,
    SampleReport,
    SizeSummary,
    SparsitySummary,
    SpeedFigures,
    SpeedReport,
    SpeedRun,
    Spread,
    TaskMetric,
    TaskScores,
    TasksSummary,
    Verification,
)
from strucprune_core.report.sizes import SizeResult, SizesReport

# Markup, ends of attributes, and characters that are no text.
HOSTILE = (
    "</style></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>"
    '" onload="x" \' & \x00\x1b\ud800\u202etxt'
)


def make_layers(count: int, width: int = 1536) -> list[LayerReport]:
    return [
        LayerReport(
            index=index,
            width_before=width,
            width_after=int(width * (0.55 + 0.4 * abs(math.sin(0.37 * index + 0.8)))),
            query_heads_before=9,
            query_heads_after=9,
            kv_heads_before=3,
            kv_heads_after=3,
            sites=[],
            energy=0.02 * math.exp(4.2 * abs(math.cos(0.21 * index))),
            predicted_damage=0.0011 * (1.3 + math.sin(1.1 * index)),
            reconstruction_error=0.012 + 0.05 * index / count + 0.01 * math.sin(2.3 * index),
            damping=0.3,
            damping_retries=0,
            seconds=1.6 + 0.4 * math.sin(index),
        )
        for index in range(count)
    ]


def make_report(layers: int = 30, **changes: Any) -> Report:
    hidden, width = 576, 1536
    rows = make_layers(layers, width)
    channels = layers * width
    kept = sum(row.width_after for row in rows)
    removed = channels - kept
    other = 49152 * hidden + layers * 884_736
    before, after = other + 3 * hidden * channels, other + 3 * hidden * kept
    values: dict[str, Any] = {
        "created_at": "2025-06-01T09:30:00Z",
        "model": ModelSummary(
            uri="s3://models/examples/tiny-llama-135m",
            architecture="llama",
            layers=layers,
            hidden_size=hidden,
            intermediate_size=width,
            vocab_size=49152,
            dtype="bfloat16",
            digest="5f" * 32,
        ),
        "spec": {
            "model": {"uri": "s3://models/examples/tiny-llama-135m"},
            "output": {"uri_prefix": "s3://models/pruned/tiny-llama-135m-s20"},
            "pruning": {
                "structures": ["ffn_channels"],
                "sparsity": 0.2,
                "allocation": "threshold",
                "solver": "obs",
                "layout": "per_layer",
                "damping": None,
                "min_keep_fraction": 0.1,
                "multiple_of": 1,
            },
            "calibration": {
                "uri": "s3://texts/calibration.txt",
                "samples": 32,
                "sequence_length": 512,
                "seed": 1729,
            },
            "runtime": {"device": "auto", "micro_batch_tokens": 4096, "priority": "normal"},
            "labels": {"team": "edge"},
        },
        "environment": Environment(
            strucprune="0.1.0",
            python="3.11.9",
            torch="2.6.0",
            device="cpu",
            platform="Linux-6.1-x86_64",
            threads=2,
        ),
        "before": SizeSummary(
            parameters=before,
            bytes=2 * before,
            ffn_channels=channels,
            query_heads=9 * layers,
            kv_heads=3 * layers,
            kv_cache_bytes_per_token=768 * layers,
            flops_per_token=2 * before,
        ),
        "after": SizeSummary(
            parameters=after,
            bytes=2 * after,
            ffn_channels=kept,
            query_heads=9 * layers,
            kv_heads=3 * layers,
            kv_cache_bytes_per_token=768 * layers,
            flops_per_token=2 * after,
        ),
        "sparsity": SparsitySummary(
            requested=0.2,
            reached=removed / channels,
            channels_removed=removed,
            kv_heads_removed=0,
            query_heads_removed=0,
            parameters_removed=before - after,
        ),
        "layers": rows,
        "perplexity": PerplexitySummary(
            before=23.4871,
            after=27.9132,
            ratio=27.9132 / 23.4871,
            sequences=24,
            sequence_length=1024,
            tokens=24552,
            text_uri="s3://texts/evaluation.txt",
            text_sha256="a7" * 32,
        ),
        "memory": MemorySummary(
            host_peak_bytes=MemoryFigure(predicted=812_000_000, measured=774_500_000),
            device_peak_bytes=MemoryFigure(predicted=161_000_000, measured=None),
            whole_model_bytes=2 * before,
            note="Host: highest resident set of the process. Device: not measured on CPU.",
        ),
        "phases": [
            PhaseTime(name=name, seconds=seconds)
            for name, seconds in [
                ("inspecting", 0.42),
                ("calibrating", 41.8),
                ("allocating", 12.3),
                ("solving", 63.9),
                ("evaluating", 88.1),
                ("uploading", 3.7),
                ("committing", 0.2),
            ]
        ],
        "model_check": ModelCheck(
            reference="transformers 5.0.0",
            tokens=128,
            layers=[0, 3],
            max_relative_difference=2.5e-7,
            tolerance=1.7e-5,
        ),
        "verification": Verification(
            reference="transformers 5.0",
            tokens=512,
            max_abs_logit_difference=0.00012,
            tolerance=0.01,
        ),
        "files": [
            FileEntry(name="config.json", bytes=912, sha256="01" * 32),
            FileEntry(name="model.safetensors", bytes=2 * after, sha256="ab" * 32),
            FileEntry(name="tokenizer.json", bytes=2_104_556, sha256="9c" * 32),
        ],
        "warnings": ["Illustration: the figures in this report are made up, not measured."],
    }
    return Report(**{**values, **changes})


def made_sizes() -> SizesReport:
    """Of three sizes, with everything that may be measured of each; the last is rejected."""
    one = make_report()
    task = TaskScores(
        task="piqa",
        version="1.0",
        num_fewshot=0,
        documents=100,
        available_documents=1838,
        chance=0.5,
        metrics=[TaskMetric(name="acc", value=0.66, standard_error=0.047, higher_is_better=True)],
        requests_sha256="0" * 64,
    )
    sample = SampleReport(
        prompt="Once upon a time",
        same=" there was",
        same_tokens=2,
        dense=Continuation(token=" a", rest=" king.", tokens=5, ended=True),
        pruned=Continuation(token=" one", rest=" who", tokens=4, ended=False),
    )
    sizes = [
        SizeResult(
            name=name,
            folder=None if share > 0.4 else name,
            rejected="perplexity went too far" if share > 0.4 else None,
            sparsity=one.sparsity.model_copy(update={"requested": share, "reached": share}),
            after=one.before.model_copy(update={"bytes": round(one.before.bytes * (1 - share))}),
            perplexity=23.5 * (1 + share),
            perplexity_ratio=1 + share,
            task_retention=1 - share,
            tasks=TasksSummary(
                harness="0.4.13",
                dense=[task],
                pruned=[task],
                retention=1 - share,
                cut_requests=0,
            ),
            speed=made_speed(),
            samples=[sample],
            best_of_its_size=share <= 0.4,
        )
        for name, share in (("0.2", 0.2), ("0.3", 0.3), ("0.5", 0.5))
    ]
    return SizesReport(
        job_fingerprint=one.job_fingerprint,
        created_at=one.created_at,
        model=one.model,
        spec=one.spec,
        environment=one.environment,
        before=one.before,
        perplexity_before=23.5,
        sizes=sizes,
        phases=one.phases,
        files=one.files,
        warnings=["0.5: not published: perplexity went too far"],
    )


def made_prediction() -> PredictedSpeed:
    """A prediction by a table that was never measured."""
    return PredictedSpeed(
        asked=1.25,
        predicted=1.3,
        of="decode",
        dense_seconds=0.065,
        pruned_seconds=0.05,
        sequences=1,
        tokens=1,
        context_tokens=256,
        table="a-table",
        table_sha256="0" * 64,
        device="a device",
        threads=2,
        dtype="bfloat16",
        runtime="transformers 5.1",
        measured_on="2026-01-01",
    )


def made_speed() -> SpeedReport:
    """A measurement that was never made."""
    return SpeedReport(
        runtime="transformers 5.1",
        device="a device",
        dtype="bfloat16",
        threads=2,
        prompt_tokens=256,
        new_tokens=32,
        dense=_speed_figures(20.0),
        pruned=_speed_figures(30.0),
        prefill_gain=1.25,
        decode_gain=1.5,
        runs=[SpeedRun(model="dense", first_token_seconds=3.0, decode_seconds=1.0)] * 10,
    )


def _speed_figures(decode: float) -> SpeedFigures:
    def spread(median: float) -> Spread:
        return Spread(median=median, least=median - 1, most=median + 2)

    return SpeedFigures(
        first_token_seconds=spread(3.25),
        prefill_tokens_per_second=spread(800.5),
        decode_tokens_per_second=spread(decode),
        peak_bytes=123_000_000,
    )
