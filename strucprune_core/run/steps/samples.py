"""`samples.dense`, `samples.pruned`: how a model continues prompts."""

from __future__ import annotations

from strucprune_core.calibration.tokenizer_session import TokenizerSession
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.evaluation.samples import compare, write_samples
from strucprune_core.models.streaming import ModelStream
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.samples import passes_per_model
from strucprune_core.run.artifacts import Samples, SamplesValues, SampleTokens
from strucprune_core.run.context import Job
from strucprune_core.run.local_weights import local_weights
from strucprune_core.run.workspace import Draft
from strucprune_core.run.written_checkpoint import reopened


def samples(job: Job, unit: Unit, draft: Draft) -> None:
    """Continue the prompts with the dense or the pruned model, streamed; writes no file.

    Raises:
        InvalidSpec: a prompt is too long for the model, or has no token.
        InvalidText: the tokenizer cannot encode a prompt.
    """
    with TokenizerSession(job.index, job.config.vocab_size, wait=job.safe_point) as session:
        if unit.name == Samples("dense").unit:
            draft.record(SamplesValues(_of_dense(job, session)))
            return
        pruned = _written(job, session, reopened(job)[1])
        dense = job.units.values(Samples("dense")).tokens
        compared = compare(session, job.spec.sampled_prompts, dense, pruned)
        draft.record(SamplesValues(pruned, [each.model_dump() for each in compared]))


def _of_dense(job: Job, session: TokenizerSession) -> list[SampleTokens]:
    with local_weights(job.index, job.scratch, job.safe_point) as index:
        return _written(job, session, _stream(job, index))


def _stream(job: Job, index: CheckpointIndex) -> ModelStream:
    return job.stream(job.config, TensorReader(index))


def _written(job: Job, session: TokenizerSession, stream: ModelStream) -> list[SampleTokens]:
    evaluation = job.spec.evaluation
    assert evaluation is not None  # noqa: S101 - else the graph has no such unit
    total = stream.config.layers * passes_per_model(job.spec, stream.config)
    done = iter(range(1, 1 << 40))
    return write_samples(
        stream,
        session,
        evaluation.sampled_prompts,
        evaluation.sample_tokens,
        job.scratch,
        tick=lambda: job.tick(min(next(done), total), total),
    )
