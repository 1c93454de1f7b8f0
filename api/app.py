"""Builds the FastAPI application: services, middleware and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import openapi, problems
from api.inspection.inspectors import Inspectors
from api.jobs.tracing import tracing
from api.middleware import BodyLimit, RequestId, SafeHeaders, Trace
from api.routes import (
    artifacts,
    capabilities,
    control,
    events,
    health,
    jobs,
    logs,
    metrics,
    models,
    usage,
    web,
)
from api.services import Services
from api.settings import Settings
from api.telemetry import CountRequests, Telemetry
from strucprune_core import __version__


def create_app(settings: Settings, inspectors: Inspectors | None = None) -> FastAPI:
    """The application. It connects to nothing until it is used.

    Args:
        settings: The settings.
        inspectors: Shared inspectors, which the caller ends; None for its own.

    Raises:
        InvalidSpec: on start, if `state_uri` or the S3 settings are malformed.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = Services.connect(settings, inspectors)
        app.state.tracing = tracing("strucprune-api")
        app.state.telemetry.watch(app.state.services.ledger)
        try:
            yield
        finally:
            app.state.tracing.close()
            await app.state.services.close()
            if inspectors is None:
                app.state.services.inspectors.close()

    # This class includes the files of Swagger UI. FastAPI's own /docs loads them from a CDN. That
    # fails in a closed network, and elsewhere runs foreign code on a page into which people type
    # API keys. The page itself is ours, without inline code (`routes.web`).
    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        title="StrucPrune",
        version=__version__,
        summary="Structured pruning of large language models.",
        lifespan=lifespan,
    )
    # The last one added sees a request first, so refusals by size carry a request id too.
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    app.state.telemetry = Telemetry()
    app.add_middleware(CountRequests, telemetry=app.state.telemetry)
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestId)
    app.add_middleware(Trace)
    problems.install(app)
    openapi.install(app)
    for module in (
        jobs,
        control,
        events,
        logs,
        artifacts,
        models,
        capabilities,
        usage,
        health,
        metrics,
        web,
    ):
        app.include_router(module.router)
    return app
