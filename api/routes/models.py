"""Models that the caller's jobs may name, for people who type a URI."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import Reader
from api.lookup import Turn
from api.model_search import find_models
from api.openapi import problems
from api.services import Wired
from api.views import ModelList

MAX_PAGE_SIZE = 100
MAX_PREFIX_LENGTH = 2048

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", responses=problems(401, 403, 422, 503), dependencies=[Turn])
def list_models(
    principal: Reader,
    services: Wired,
    prefix: Annotated[
        str,
        Query(
            max_length=MAX_PREFIX_LENGTH,
            description="Beginning of the URI, which may end anywhere. Without one, all below your "
            "organisation's allowed prefixes.",
            examples=["s3://work/models/smol"],
        ),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 20,
) -> ModelList:
    """Folders with a config.json that your jobs may name and whose URI begins like this.

    No object is read, and no more than some thousand are listed.
    """
    found = find_models(prefix, principal.tenant, services.settings, services.stores.open, limit)
    return ModelList(data=found.uris, complete=found.complete)
