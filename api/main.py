"""The HTTP service: `uvicorn --factory api.main:create_app`. Requests become rows; torch is never imported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI

from api import errors
from api.deps import require_key
from api.feeds import Feeds
from api.gate import KnownHosts, NoSniff
from api.openapi import PROBLEM, document_errors
from api.routes import catalog, docs, events, health, jobs, models, requests, runs, signals, storage, workers
from jobs import db
from jobs.settings import Settings
from jobs.settings import settings as settings_of_process
from jobs.storage import storage_of

CONNECTIONS = 30  # of PostgreSQL's 100; requests are served by 40 threads, and not all want the database at once
PATIENCE_S = 2.0  # a request that waits longer for the database is told to come again; its thread serves another
DESCRIPTION = "Distil heavy segmentation networks into compact students: submit a job, watch it, download the student."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application on the database of `settings` (default: the environment's), whose tables must be there."""
    settings = settings or settings_of_process()
    app = FastAPI(
        title="dsd",
        version=version("dsd"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.settings = settings
    app.state.engine = db.make_engine(
        settings.db_url, connections=CONNECTIONS, statement_timeout_s=PATIENCE_S, pool_timeout_s=PATIENCE_S
    )
    app.state.feeds = Feeds(app.state.engine)
    app.state.storage = storage_of(settings)
    errors.install(app)
    app.add_middleware(KnownHosts, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(NoSniff)
    v1 = APIRouter(prefix="/api/v1", dependencies=[Depends(require_key)], responses=PROBLEM)
    for part in (jobs, requests, events, runs, workers, catalog, models, storage, signals):
        v1.include_router(part.router)
    for router in (v1, health.router, docs.router):
        app.include_router(router)
    document_errors(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.engine.dispose()
