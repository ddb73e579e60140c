# `make help` lists the targets; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo format lint types quick quick-tests test all-tests faults slow bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## install everything into .venv; PYTHON=python3.12 chooses the interpreter

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; use make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## train ten clients on synthetic dialogues
	$(BIN)/python main.py

format: setup ## format the source and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

quick: setup ## format, lint, types, and the tests that start no run, process or server
	@$(MAKE) --no-print-directory -j 2 lint types quick-tests

quick-tests: setup
	$(PYTEST) -n 2 --dist worksteal -m "not runs and not processes and not servers and not faults and not slow"

test: setup ## format, lint, types and all tests but `make slow` and `make faults`
	@$(MAKE) --no-print-directory -j 2 lint types all-tests

all-tests: setup
	$(PYTEST) -n 2 --dist worksteal --durations 25

faults: setup ## kill, stop, damage, starve and attack runs; OPTIONS="-k kills", FAULTS_KILLS=10 FAULTS_ROUNDS=200 FAULTS_SEED=1
	$(PYTEST) -m faults tests/faults tests/attacks -rs $(OPTIONS)

slow: setup ## run unusual but valid settings, drawn at random; UNUSUAL=24 SEED=0
	$(PYTEST) -m slow tests/run -rs $(OPTIONS)

bench: .venv/bench ## time the training step and the federation; OPTIONS="shape=tiny repeats=5"
	$(BIN)/python scripts/bench.py $(OPTIONS)

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

docs: setup ## write docs/settings.md and the file tables of docs/architecture.md from the source
	$(BIN)/python scripts/settings_page.py
	$(BIN)/python scripts/source_tree.py

clean: ## remove .venv and what builds leave
	rm -rf .venv build *.egg-info
