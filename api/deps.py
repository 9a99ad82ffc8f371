"""What endpoints ask for: the settings, the database, what is kept where, and that the caller has the key."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from api.body import read_patch, read_spec, read_wishes
from api.errors import Unauthorized
from api.feeds import Feeds
from api.schemas import JobWishes, Json
from dsd_core.signals.store import Store
from dsd_core.spec import JobSpec
from jobs.settings import Settings
from jobs.storage import Storage, signals_of

_bearer = HTTPBearer(auto_error=False, description="The service's DSD_API_KEY, where it has one.")


async def require_key(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raise Unauthorized where the service has a key and the caller did not send it."""
    key: str | None = request.app.state.settings.api_key
    if key is None:
        return
    if given is None:
        raise Unauthorized("This service wants its API key.", hint="Send Authorization: Bearer KEY (DSD_API_KEY).")
    if not hmac.compare_digest(given.credentials.encode(), key.encode()):
        raise Unauthorized("This is not the API key of this service.", hint="Check DSD_API_KEY.")


async def _settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


async def _engine(request: Request) -> Engine:
    found: Engine = request.app.state.engine
    return found


async def _feeds(request: Request) -> Feeds:
    found: Feeds = request.app.state.feeds
    return found


async def _storage(request: Request) -> Storage:
    found: Storage = request.app.state.storage
    return found


async def _signals(request: Request) -> Store:
    return signals_of(request.app.state.settings)


SettingsOf = Annotated[Settings, Depends(_settings)]
Database = Annotated[Engine, Depends(_engine)]
FeedsOf = Annotated[Feeds, Depends(_feeds)]
StorageOf = Annotated[Storage, Depends(_storage)]
SignalsOf = Annotated[Store, Depends(_signals)]
Spec = Annotated[JobSpec, Depends(read_spec)]
Patch = Annotated[Json, Depends(read_patch)]
Wishes = Annotated[JobWishes, Depends(read_wishes)]
