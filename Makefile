PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ON = $(if $(DATA),--data $(DATA)) $(if $(TEACHER),--teacher $(TEACHER))

.PHONY: setup check test test-slow faults soak mutants demo up compare views bench loss-costs queue-costs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy api jobs worker client deploy dsd_core
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -m "not slow and not faults_only"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not faults_only"

faults: setup
	$(BIN)/python -m pytest -m fault

soak: setup
	@$(BIN)/python -m tests.faults.soak $(if $(JOBS),--jobs $(JOBS)) $(if $(SECONDS),--seconds $(SECONDS))

mutants: setup
	$(BIN)/python -m tests.mutants.run

demo: setup
	$(BIN)/dsd demo $(ON)

up: setup
	$(BIN)/dsd up

compare: setup
	$(BIN)/python -m benchmarks.camvid_losses $(ON) $(if $(JOBS),--jobs $(JOBS))

views: setup
	$(BIN)/python -m benchmarks.camvid_views $(ON) $(if $(JOBS),--jobs $(JOBS))

bench: setup
	$(BIN)/python -m benchmarks.bench $(ON) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

loss-costs: setup
	$(BIN)/python -m benchmarks.losses

queue-costs: setup
	$(BIN)/python -m benchmarks.queue

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
