"""`curve.l`: the damage of removing the structures of a layer's sites, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.method.layer.damage_curve import DamageCurve, damage_curve
from strucprune_core.method.layer.group_damage_curve import group_damage_curve
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Curve, CurveValues
from strucprune_core.run.context import Job
from strucprune_core.run.measured_site import MeasuredSite, damage_name, order_name
from strucprune_core.run.workspace import Draft


@torch.inference_mode()
def curve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write the order and the damage of all removals of each site."""
    tensors: dict[str, Tensor] = {}
    dtypes: dict[str, str] = {}
    sites = job.sites(unit.index)
    for number, site in enumerate(sites):
        job.tick(number, len(sites))
        result = _curve(MeasuredSite(job, unit.index, site))
        job.transfers.count(to_host=result.order.nbytes + result.damage.nbytes)
        tensors |= {order_name(site): result.order, damage_name(site): result.damage}
        dtypes[site.name] = str(result.dtype).removeprefix("torch.")
    save_bundle(draft.path(Curve.curves), tensors)
    draft.record(CurveValues(dtypes))


def _curve(measured: MeasuredSite) -> DamageCurve:
    site = measured.site
    room = measured.job.curve_room(site.width)
    gram, matrix = measured.gram(), measured.output_matrix()
    if site.columns == 1:
        return damage_curve(gram, matrix, room=room)
    return group_damage_curve(gram, matrix, site.columns, site.lockstep, room)
