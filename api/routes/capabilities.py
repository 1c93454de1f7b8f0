"""What this deployment can do, read from the definitions that the code uses."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter

from api.auth import Reader
from api.openapi import problems
from api.routes.jobs import MAX_PAGE_SIZE, MAX_WAIT_SECONDS
from api.services import Wired
from api.views import Capabilities, Limits
from strucprune_core import __version__
from strucprune_core.export.runtimes import RUNTIMES
from strucprune_core.models.families import FAMILIES
from strucprune_core.models.generic.architectures import generic_model_types
from strucprune_core.plan.device_table import shipped_tables
from strucprune_core.spec import Export, JobSpec, PruningSpec, field_defaults

router = APIRouter(prefix="/v1", tags=["capabilities"])


@router.get("/capabilities", responses=problems(401, 403))
def get_capabilities(principal: Reader, services: Wired) -> Capabilities:
    """Architectures, methods and limits."""
    (structure_choices, _ellipsis) = get_args(PruningSpec.model_fields["structures"].annotation)
    return Capabilities(
        version=__version__,
        architectures=[*FAMILIES, *generic_model_types()],
        structures=list(get_args(structure_choices)),
        allocations=_choices("allocation"),
        energies=_choices("energy"),
        solvers=_choices("solver"),
        layouts=_choices("layout"),
        exports=list(get_args(Export)),
        defaults=field_defaults(JobSpec),
        runtimes=list(RUNTIMES),
        device_tables=shipped_tables(),
        limits=Limits(
            request_bytes=services.settings.max_request_bytes,
            page_size=MAX_PAGE_SIZE,
            wait_seconds=MAX_WAIT_SECONDS,
            gpu_memory_bytes=services.settings.gpu_memory_bytes,
        ),
    )


def _choices(field: str) -> list[str]:
    return list(get_args(PruningSpec.model_fields[field].annotation))
