"""What a user must know of a finished job beside its figures: a line for each kind of thing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from strucprune_core.calibration.degeneracy import TokenCounts, rank_is_low
from strucprune_core.calibration.text import CALIBRATION_TEXT_BYTES
from strucprune_core.plan.graph import EVALUATION
from strucprune_core.report.document import (
    LayerReport,
    TargetReport,
    has_few_tokens,
    largest_known,
    layers_with_experts,
)
from strucprune_core.run.artifacts import EvaluationTokensValues, TokensValues
from strucprune_core.spec import JobSpec

LARGE_DIVERGENCE = math.log(2.0)
"""From here on, perplexity on text that the dense model writes is twice the dense model's."""

_EXPONENT = 50.0  # exp of a larger number says no more, and may overflow.
TARGET_TOLERANCE = 0.001
"""Headers of files, and the last structure, are not worth a warning."""
FEW_EXPERT_TOKENS = 100
"""The mean over fewer tokens is off by a tenth of their spread, or more."""


def text_warnings(
    spec: JobSpec,
    vocabulary: int,
    calibration: TokensValues,
    evaluation: EvaluationTokensValues | None,
) -> list[str]:
    """Texts of few distinct tokens, or longer than what is read of them.

    Args:
        spec: The job.
        vocabulary: Tokens that the model knows.
        calibration: What is known of the calibration text.
        evaluation: What is known of the evaluation text, if there is one.
    """
    warnings: list[str] = []
    place = spec.calibration.place
    if calibration.calibration_tokens.are_few(vocabulary):
        warnings.append(
            f"{_few_tokens(place, calibration.calibration_tokens)} What it lacks looks unnecessary "
            f"and is pruned: give a text such as the model is used on."
        )
    if evaluation is not None and evaluation.evaluation_tokens.are_few(vocabulary):
        few = _few_tokens(EVALUATION, evaluation.evaluation_tokens)
        warnings.append(f"{few} Perplexity on it says little.")
    if calibration.calibration_cut:
        warnings.append(
            f"{place}: windows were drawn from the first {CALIBRATION_TEXT_BYTES:,} bytes of text; "
            f"the rest was not read."
        )
    return warnings


def _few_tokens(place: str, counts: TokenCounts) -> str:
    return f"{place}: the text has hardly any variety, {counts.words}."


def layer_rank(layer: LayerReport) -> float | None:
    """Effective rank of a layer's inputs: the largest of its sites, None if all are zero."""
    return largest_known(site.effective_rank for site in layer.sites)


def rank_warning(layers: Sequence[LayerReport]) -> list[str]:
    """One line on all layers to which the calibration tokens look much alike."""
    low = [
        (rank, layer.index)
        for layer in layers
        if (rank := layer_rank(layer)) is not None and _is_low(rank, layer)
    ]
    if not low:
        return []
    rank, index = min(low)
    return [
        f"{len(low)} of {len(layers)} layers have inputs of few independent directions on the "
        f"calibration text (lowest: layer {index}, effective rank {rank:.1f}). Give a text with "
        f"more variety."
    ]


def _is_low(rank: float, layer: LayerReport) -> bool:
    tokens = max(site.calibration_tokens for site in layer.sites)
    return rank_is_low(rank, tokens, max(site.columns for site in layer.sites))


def few_tokens_warning(layers: Sequence[LayerReport]) -> list[str]:
    """One line on all sites whose statistics are in part assumed; see `method.gram`."""
    sites = [(layer.index, site) for layer in layers for site in layer.sites]
    few = [(index, site) for index, site in sites if has_few_tokens(site)]
    if not few:
        return []
    none = sum(site.calibration_tokens == 0 for _, site in few)
    index, first = few[0]
    at_all = f", {none:,} none at all" if none else ""
    return [
        f"{len(few):,} of {len(sites):,} sites saw fewer calibration tokens than they have columns"
        f"{at_all} (the first: layer {index}, {first.name}). What their tokens do not determine is "
        f"assumed. Raise calibration.samples or calibration.sequence_length."
    ]


def few_expert_tokens_warning(layers: Sequence[LayerReport]) -> list[str]:
    """One line on all experts that few tokens reached: their scores say little."""
    seen = [
        (layer.index, expert, tokens)
        for layer, experts in layers_with_experts(layers)
        for expert, tokens in enumerate(experts.calibration_tokens)
    ]
    few = [each for each in seen if each[2] < FEW_EXPERT_TOKENS]
    if not few:
        return []
    none = sum(tokens == 0 for _, _, tokens in few)
    layer, expert, _ = few[0]
    at_all = f", {none:,} none at all, which went first" if none else ""
    return [
        f"{len(few):,} of {len(seen):,} experts saw fewer than {FEW_EXPERT_TOKENS} calibration "
        f"tokens{at_all} (the first: layer {layer}, expert {expert}). Their scores say little. "
        f"Raise calibration.samples or calibration.sequence_length."
    ]


def divergence_warning(kl: float) -> list[str]:
    """Experts that were not redundant.

    Args:
        kl: Divergence per token of the model without them, in nats.
    """
    if kl <= LARGE_DIVERGENCE:
        return []
    times = math.exp(min(kl, _EXPONENT))
    return [
        f"without these experts the model diverges from the dense one by {kl:.3g} nats per token "
        f"on held-out calibration text, as if perplexity had grown {times:.3g}-fold. They were not "
        f"redundant: keep more of them."
    ]


def retry_warnings(layers: Sequence[LayerReport]) -> list[str]:
    """A damping that had to be raised: the Gram matrix was close to singular."""
    return [
        f"layer {layer.index}: the ridge was raised {layer.damping_retries} time(s) to factorise "
        f"its Gram matrix"
        for layer in layers
        if layer.damping_retries
    ]


def target_warning(target: TargetReport | None) -> list[str]:
    """A result that is larger than it was to be: steps are whole structures."""
    if target is None or target.reached <= (1 + TARGET_TOLERANCE) * target.most:
        return []
    return [
        f"pruning.target.{target.kind}: {target.most:,} was the most asked for, and the result has "
        f"{target.reached:,}. Ask for a little less if it must not be more."
    ]
