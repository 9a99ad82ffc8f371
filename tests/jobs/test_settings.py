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


def test_a_wrong_number_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_LEASE_S", "soon")
    with pytest.raises(ValidationError, match="lease_s"):
        Settings()


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Settings(api_key="secret"))
