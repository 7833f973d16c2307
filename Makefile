# Every target sets up what it needs in .venv; the second run finds it ready.
#   make demo    the main job on a real photo
#   make test    lint, types and the whole suite
PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml setup.py constraints.txt

# A relative path: pip splits this variable at blanks, which a folder's name may hold.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help demo test lint format clean

help:
	@sed -n '2,3s/^# *//p' Makefile

demo: $(VENV)/ready-demo
	@$(BIN)/python tools/demo.py

# Lint and types do not keep the tests from running, but from passing.
test: $(VENV)/ready-dev
	@status=0; \
	$(MAKE) --no-print-directory lint || status=$$?; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS) || status=$$?; \
	exit $$status

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out build dist *.egg-info

$(VENV)/ready-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# With lvis, a reference of AP; without it the tests against it are skipped. What it requires is
# left out, for that holds a second OpenCV.
$(VENV)/ready-dev: $(VENV)/ready-python $(INPUTS)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	-$(BIN)/python -m pip install --quiet --no-deps lvis
	@touch $@

$(VENV)/ready-%: $(VENV)/ready-python $(INPUTS)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
