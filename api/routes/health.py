"""Whether the process lives, and whether it can take jobs."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from api.deps import Database, SettingsOf
from api.schemas import Answer
from jobs import db
from jobs.queue import broker_alive
from jobs.tables import JobRow

router = APIRouter(tags=["health"])

MLFLOW_TIMEOUT_S = 1.0
Part = Literal["ok", "away", "not configured"]


class Live(Answer):
    status: Literal["alive"]


class Ready(Answer):
    """The database must answer. Without a broker or MLflow jobs are taken all the same, and wait."""

    status: Literal["ready", "degraded", "unready"]
    database: Part
    broker: Part
    mlflow: Part


@router.get("/livez")
async def live() -> Live:
    """The process answers; nothing else is asked."""
    return Live(status="alive")


@router.get("/readyz", responses={503: {"model": Ready, "description": "No job can be taken."}}, response_model=Ready)
def ready(engine: Database, settings: SettingsOf) -> JSONResponse:
    """Whether jobs can be taken; `degraded` where they are taken but wait for the broker, or for MLflow to register."""
    database: Part = "ok" if _database_answers(engine) else "away"
    broker: Part = _part(settings.broker_url, broker_alive)
    mlflow: Part = _part(settings.mlflow_url, _mlflow_answers)
    whole = database == broker == mlflow == "ok"
    status: Literal["ready", "degraded", "unready"]
    status = "unready" if database != "ok" else "ready" if whole else "degraded"
    answer = Ready(status=status, database=database, broker=broker, mlflow=mlflow)
    code = HTTPStatus.SERVICE_UNAVAILABLE if status == "unready" else HTTPStatus.OK
    return JSONResponse(answer.model_dump(), code, headers={"Cache-Control": "no-store"})


def _part(url: str | None, answers: Callable[[str], bool]) -> Part:
    if url is None:
        return "not configured"
    return "ok" if answers(url) else "away"


def _database_answers(engine: Engine) -> bool:
    try:
        with db.reading(engine) as s:
            s.execute(select(JobRow.id).limit(1))
    except SQLAlchemyError:
        return False
    return True


def _mlflow_answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/health", timeout=MLFLOW_TIMEOUT_S) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, ValueError):
        return False
