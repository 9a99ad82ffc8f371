"""`dsd doctor` names what is wrong with an installation, and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update

from deploy import doctor
from deploy.doctor import Finding
from jobs import db, store
from jobs.tables import WebhookRow
from tests.jobs.builders import a_queued_job, an_offer, cancel
from tests.servers import Valkey


@pytest.fixture
def installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, engine: Engine, valkey: Valkey
) -> Iterator[Engine]:
    """One with a worker that was just heard of, on each database."""
    for name in [name for name in os.environ if name.startswith("DSD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DSD_HOME", str(tmp_path))
    monkeypatch.setenv("DSD_DATABASE_URL", database_url)
    monkeypatch.setenv("DSD_BROKER_URL", valkey.url)
    with db.begin(engine) as s:
        store.register_worker(s, an_offer())
    yield engine


def wrong() -> dict[str, Finding]:
    return {finding.part: finding for finding in doctor.examine() if not finding.ok}


def test_a_sound_installation_has_nothing_wrong_and_says_how_its_database_is_kept(
    installation: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--json"]) == 0
    said = {finding["part"]: finding["says"] for finding in json.loads(capsys.readouterr().out)}
    assert list(said) == ["database", "tables", "controller", "workers", "webhooks", "broker", "storage", "mlflow"]
    mode, why = db.journal_mode()
    on_sqlite = installation.dialect.name == "sqlite"
    assert (f"journal mode {mode}. {why}" if on_sqlite else "PostgreSQL") in said["database"]


def test_each_part_that_is_wrong_is_named_with_what_to_do(
    installation: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], valkey: Valkey
) -> None:
    valkey.client().config_set("maxmemory-policy", "allkeys-lru")
    monkeypatch.setenv("DSD_MLFLOW_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DSD_STORAGE", "/proc/nowhere")
    cancel(installation, a_queued_job(installation, webhook="https://example.org/"))
    with db.begin(installation) as s:
        s.execute(text("DELETE FROM workers"))
        s.execute(update(WebhookRow).values(next_try_at=None, error="It answered 500."))
    found = wrong()
    assert set(found) == {"workers", "webhooks", "broker", "storage", "mlflow"}
    assert "maxmemory-policy is allkeys-lru" in found["broker"].says
    assert "It answered 500." in found["webhooks"].says
    valkey.kill()
    assert "No such file" in wrong()["broker"].says or "refused" in wrong()["broker"].says
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert all(finding.hint in printed for finding in found.values() if finding.hint and finding.part != "broker")


def test_a_bucket_that_does_not_answer_is_wrong(installation: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_STORAGE", "s3://runs/here")
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    assert "s3://runs/here" in wrong()["storage"].says


def test_tables_of_another_version_are_wrong(installation: Engine, database_url: str) -> None:
    db.downgrade(database_url, "0001")
    assert "of version 0001, this code needs" in wrong()["tables"].says


def test_a_database_that_is_away_is_wrong_and_its_password_is_not_printed(
    installation: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DSD_DATABASE_URL", "postgresql+psycopg://dsd:secret@127.0.0.1:9/dsd")
    assert "refused" in wrong()["database"].says and "secret" not in str(wrong())
    monkeypatch.setenv("DSD_DATABASE_URL", f"sqlite:///{tmp_path}/none/jobs.db")
    assert "There is no file" in wrong()["database"].says and not (tmp_path / "none").exists()


def test_a_setting_that_is_no_number_is_named(installation: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_LEASE_S", "soon")
    assert "DSD_LEASE_S" in wrong()["settings"].says


def test_dsd_doctor_is_a_command_of_its_own(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}
    run = subprocess.run(
        [sys.executable, "-m", "client.cli", "doctor", "--home", str(tmp_path), "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert {finding["part"] for finding in json.loads(run.stdout) if not finding["ok"]} == {"database", "broker"}
