from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.settings import Settings


def test_lists_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_ALLOWED_HOSTS", "api.example.org, localhost,")
    monkeypatch.setenv("DSD_DATA_ROOTS", "/data:/mnt/more")
    settings = Settings()
    assert settings.allowed_hosts == ("api.example.org", "localhost")
    assert settings.data_roots == (Path("/data"), Path("/mnt/more"))


def test_an_empty_list_of_roots_means_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_DATA_ROOTS", "")
    assert Settings().data_roots == ()


def test_everything_lies_in_home_unless_told_otherwise(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, storage=None, database_url=None)
    assert settings.storage_dir == tmp_path / "storage"
    assert settings.db_url == f"sqlite:///{tmp_path}/jobs.db"
    assert settings.run_dir("j") == tmp_path / "storage" / "runs" / "j"


def test_teachers_signals_lie_beside_the_run_folders_and_in_the_home_where_those_are_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(home=tmp_path).signals_dir == tmp_path / "storage" / "signals"
    assert Settings(home=tmp_path, storage="s3://bucket/runs").signals_dir == tmp_path / "signals"
    monkeypatch.setenv("DSD_SIGNALS", str(tmp_path / "fast"))
    monkeypatch.setenv("DSD_SIGNALS_BYTES", "5GiB")
    settings = Settings(home=tmp_path, storage="s3://bucket/runs")
    assert (settings.signals_dir, settings.signals_bytes) == (tmp_path / "fast", 5 * 2**30)


@pytest.mark.parametrize("bytes_", ["-1", "much"])
def test_a_limit_of_signals_that_is_none_is_refused(bytes_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_SIGNALS_BYTES", bytes_)
    with pytest.raises(ValidationError, match="signals_bytes"):
        Settings()


def test_a_wrong_number_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_LEASE_S", "soon")
    with pytest.raises(ValidationError, match="lease_s"):
        Settings()


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Settings(api_key="secret"))
