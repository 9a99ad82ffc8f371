"""What `make mutants` plants still fits the code, and the tests that shall see it are there."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT
from tests.mutants.planted import MUTANTS, Mutant
from tests.mutants.run import planted


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_fits_the_code_and_is_code(mutant: Mutant) -> None:
    code = (ROOT / mutant.file).read_text()
    assert ast.dump(ast.parse(planted(code, mutant))) != ast.dump(ast.parse(code))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_has_tests_that_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, name = test.split("::")
        assert f"\ndef {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_there_are_at_least_twelve_mutants_each_with_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12


def test_a_mutant_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="has this 0 times"):
        planted("a = 1\n", Mutant("no", "a.py", "b = 1", "b = 2", ()))
