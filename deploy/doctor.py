"""`python -m deploy.doctor`: whether each part of the service answers, how it is set up, and what to do where not.

Exit code 0 where all is well, else 1. It asks what this machine's `DSD_…` variables name, or the service `dsd up` runs
in the home. Nothing is changed, and no password is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine, func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from deploy import health, services
from deploy import home as home_folder
from dsd_core.errors import StorageError
from jobs import db, queue, store
from jobs.settings import Settings
from jobs.storage import storage_of
from jobs.tables import WebhookRow

LOW_SPACE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """What was found out about one part. A hint says what to do; only what is wrong has one."""

    part: str
    says: str
    hint: str | None = None

    @property
    def ok(self) -> bool:
        return self.hint is None


def main(argv: Sequence[str] | None = None) -> int:
    program = f"{os.environ.get('DSD_PROGRAM', 'python -m')} {'' if 'DSD_PROGRAM' in os.environ else 'deploy.'}doctor"
    parser = argparse.ArgumentParser(program, description="Say whether every part of the service works, and why not.")
    parser.add_argument("--home", type=Path, help="folder that holds all state (default: DSD_HOME or ~/.dsd)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    findings = list(examine(arguments.home))
    if arguments.json:
        print(json.dumps([{"ok": finding.ok, **asdict(finding)} for finding in findings], indent=2))
    else:
        _print(findings)
    return 0 if all(finding.ok for finding in findings) else 1


def examine(home: Path | None = None) -> Iterator[Finding]:
    """All parts, in the order in which they need each other."""
    try:
        settings = _as_it_runs(Settings() if home is None else Settings(home=home))
    except ValidationError as error:
        for wrong in error.errors():
            name = f"DSD_{'_'.join(map(str, wrong['loc'])).upper()}"
            yield Finding("settings", f"{name}: {wrong['msg']}", f"Correct {name}, or leave it out.")
        return
    yield from _database(settings)
    for look in (_broker, _storage, _mlflow):
        yield look(settings)


def _as_it_runs(settings: Settings) -> Settings:
    """With the broker and MLflow that `dsd up` runs in this home, where no others are named."""
    try:
        address = json.loads((settings.home_dir / "up.json").read_text())
    except (OSError, ValueError):
        return settings
    return settings.model_copy(
        update={
            "broker_url": settings.broker_url or services.broker_url(home_folder.socket_path(settings.home_dir)),
            "mlflow_url": settings.mlflow_url or address.get("mlflow_url"),
        }
    )


def _database(settings: Settings) -> Iterator[Finding]:
    """The database itself, then what its tables tell of controller, workers and webhooks."""
    url = make_url(settings.db_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        yield Finding(
            "database", f"There is no file {url.database}.", "Start the service with `dsd up`, which makes it."
        )
        return
    with _engine(settings.db_url) as engine:
        try:
            yield (_sqlite if engine.dialect.name == "sqlite" else _postgresql)(engine)
            tables = _tables(engine)
            yield tables
            if not tables.ok:
                return
            yield _controller(settings)
            with db.reading(engine) as s:
                yield _workers(s, settings)
                yield _webhooks(s)
        except SQLAlchemyError as error:
            yield Finding("database", _reason(error), "Start it, or correct DSD_DATABASE_URL.")


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = db.make_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _sqlite(engine: Engine) -> Finding:
    with engine.connect() as connection:
        mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()).upper()
        sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if sound != "ok":
        return Finding(
            "database", f"{engine.url.database} is damaged: {sound}", "Stop the service and restore a backup."
        )
    return Finding("database", f"{engine.url.database}, journal mode {mode}. {db.journal_mode().reason}")


def _postgresql(engine: Engine) -> Finding:
    with engine.connect() as connection:
        version = connection.scalar(text("SHOW server_version"))
        tls = connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        durable = connection.scalar(text("SHOW synchronous_commit"))
    place = f"PostgreSQL {version} at {engine.url.host or 'a local socket'}, {'with' if tls else 'without'} TLS"
    if durable == "off":
        return Finding(
            "database",
            f"{place}: synchronous_commit is off, so a power cut loses jobs that were acknowledged.",
            "Set synchronous_commit to on.",
        )
    return Finding("database", f"{place}.")


def _tables(engine: Engine) -> Finding:
    found, newest = db.versions(engine)
    if found == newest:
        return Finding("tables", f"They are of this version, {newest}.")
    hint = "Run `python -m deploy.migrate`; `dsd up` does so by itself. Tables of a newer version need the newer code."
    return Finding("tables", f"They are of version {found or 'none'}, this code needs {newest}.", hint)


def _controller(settings: Settings) -> Finding:
    trouble = health.why_relay_stands(settings.db_url)
    if trouble:
        return Finding("controller", trouble, "Start it: `python -m worker.controller`, or `dsd up`.")
    return Finding("controller", "No job waits to be announced.")


def _workers(s: Session, settings: Settings) -> Finding:
    live = store.live_workers(s, db.db_now(s), settings.lease_s)
    if not live:
        return Finding(
            "workers", "No worker has been heard of.", "Start one; `dsd up` does, and logs/worker-1.log says why not."
        )
    busy = sum(worker.job_id is not None for worker in live)
    return Finding("workers", f"{len(live)} at work or ready, {busy} with a job.")


def _webhooks(s: Session) -> Finding:
    given_up = WebhookRow.delivered_at.is_(None), WebhookRow.next_try_at.is_(None)
    lost = s.execute(select(func.count()).select_from(WebhookRow).where(*given_up)).scalar_one()
    if not lost:
        return Finding("webhooks", "None was given up.")
    last = s.scalars(select(WebhookRow).where(*given_up).order_by(WebhookRow.id.desc()).limit(1)).one()
    says = f"{lost} could not be delivered; the newest, of job {last.job_id}: {last.error}"
    return Finding("webhooks", says, "See to the receiver and DSD_WEBHOOK_HOSTS; these messages are not sent again.")


def _broker(settings: Settings) -> Finding:
    url = settings.broker_url
    if url is None:
        return Finding("broker", "There is none.", "Start the service with `dsd up`, or set DSD_BROKER_URL.")
    if trouble := queue.broker_trouble(url):
        return Finding("broker", trouble, "Start it, or correct DSD_BROKER_URL: user, password, certificate.")
    parts = urlsplit(url.split(";")[0])
    place = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else f"the socket {parts.path}"
    policy = _policy(url)
    if policy not in (None, "noeviction"):
        return Finding(
            "broker",
            f"{place} drops messages when it is full: maxmemory-policy is {policy}.",
            "Set maxmemory-policy to noeviction.",
        )
    return Finding("broker", f"{place} answers, {'with' if parts.scheme == 'rediss' else 'without'} TLS.")


def _policy(url: str) -> str | None:
    """None where our user may not ask, as with a locked-down one."""
    with queue.connected(url) as connection:
        try:
            return str(connection.default_channel.client.config_get("maxmemory-policy")["maxmemory-policy"])
        except (RedisError, KeyError):
            return None


def _storage(settings: Settings) -> Finding:
    if settings.bucket is None:
        return _folder(settings.storage_dir)
    try:
        storage_of(settings).note("doctor")  # there is none, which is an answer
    except StorageError as error:
        return Finding("storage", error.message, error.hint or "Correct DSD_STORAGE and the AWS_… variables.")
    return Finding("storage", f"s3://{settings.bucket} answers.")


def _folder(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"dsd")
    except OSError as error:
        return Finding(
            "storage",
            f"{existing}: {error.strerror}.",
            "Give the service the right to write there, or set DSD_STORAGE.",
        )
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib < LOW_SPACE_GIB:
        return Finding(
            "storage", f"{folder} has {free_gib:.1f} GiB left.", "Free space: checkpoints will fail to be written."
        )
    return Finding("storage", f"{folder} can be written, {free_gib:.0f} GiB are free.")


def _mlflow(settings: Settings) -> Finding:
    if settings.mlflow_url is None:
        return Finding(
            "mlflow", "There is none; jobs run all the same, and tracking waits until DSD_MLFLOW_URL is set."
        )
    if trouble := health.why_no_answer(f"{settings.mlflow_url.rstrip('/')}/health"):
        return Finding("mlflow", trouble, "Start it, or correct DSD_MLFLOW_URL. Jobs run all the same; tracking waits.")
    return Finding("mlflow", f"{settings.mlflow_url} answers.")


def _reason(error: SQLAlchemyError) -> str:
    """The first line of what went wrong, without SQL."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        word = "[green]ok   [/]" if finding.ok else "[bold red]wrong[/]"
        console.print(f"{word}  {finding.part:<11} {escape(finding.says)}")
        if finding.hint:
            console.print(f"       {'':<11} {escape(finding.hint)}", style="dim")


if __name__ == "__main__":
    sys.exit(main())
