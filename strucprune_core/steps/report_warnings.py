"""What a user must know of a finished job beside its figures: a line for each kind of thing."""

from __future__ import annotations

from collections.abc import Sequence

from strucprune_core.report import LayerReport, has_few_tokens


def few_tokens_warning(layers: Sequence[LayerReport]) -> list[str]:
    """One line on all sites whose statistics are in part assumed; see `calibration.statistics`."""
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


def retry_warnings(layers: Sequence[LayerReport]) -> list[str]:
    """A damping that had to be raised: the Gram matrix was close to singular."""
    return [
        f"layer {layer.index}: the ridge was raised {layer.damping_retries} time(s) to factorise "
        f"its Gram matrix"
        for layer in layers
        if layer.damping_retries
    ]
