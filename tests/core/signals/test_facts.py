"""Facts of a teacher are kept in a bounded folder, and what is not whole is not believed."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from dsd_core.signals import facts
from dsd_core.signals.facts import fact_key, keep_fact, known_fact


class Length(BaseModel):
    metres: float


def test_a_fact_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    keep_fact(tmp_path, fact_key(Length, ["a"]), Length(metres=2))
    assert known_fact(tmp_path, fact_key(Length, ["a"]), Length) == Length(metres=2)
    assert known_fact(tmp_path, fact_key(Length, ["b"]), Length) is None
    for path in (tmp_path / facts.FOLDER).iterdir():
        path.write_text(path.read_text()[:-1])
    assert known_fact(tmp_path, fact_key(Length, ["a"]), Length) is None


def test_beyond_a_thousand_the_oldest_facts_and_halves_of_killed_processes_go(tmp_path: Path) -> None:
    folder = tmp_path / facts.FOLDER
    folder.mkdir()
    (folder / "half.1.tmp").write_text("{")
    keep_fact(tmp_path, "oldest", Length(metres=0))
    for age, path in enumerate((folder / "half.1.tmp", folder / "oldest.json")):
        os.utime(path, (age, age))
    for number in range(facts.KEPT - 2):
        (folder / f"{number}.json").write_text("{}")
    keep_fact(tmp_path, "last", Length(metres=2))
    assert len(list(folder.iterdir())) == facts.KEPT and not (folder / "half.1.tmp").exists()
    assert known_fact(tmp_path, "oldest", Length) == Length(metres=0)
    keep_fact(tmp_path, "newest", Length(metres=1))
    assert known_fact(tmp_path, "oldest", Length) is None and known_fact(tmp_path, "last", Length) is not None
