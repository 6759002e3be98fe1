# make demo        fine-tune, sample, retrieve and report on the embedded model: runs/demo/report.html
# make test        the quick tests              make test-slow   all of them
# make check       lint, types and quick tests  make lint        ruff      make typecheck   mypy, on the built wheel
# make screenshots  the picture of the demo's report that the README shows
# make clean       remove .venv, builds and caches; runs/ stays
#
# The first call sets up .venv: a few minutes, about 6 GB with PyTorch's CUDA build. To choose the interpreter or the build:
#   make demo PYTHON=python3.12 PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
WHEEL := build/wheel
# a file of tests for each core at a time, on 8 cores at most
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest --numprocesses $(CORES) --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-slow check lint typecheck screenshots clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.ready
	$(BIN)/rotescope demo --output_dir runs/demo --overwrite

test: $(VENV)/.ready
	$(PYTEST)

test-slow: $(VENV)/.ready
	$(PYTEST) -m "slow or not slow"

check: lint typecheck test

lint: $(VENV)/.ready
	$(BIN)/ruff check .

typecheck: $(VENV)/.ready
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEEL) .
	$(BIN)/python -m zipfile -e $(WHEEL)/rotescope-*.whl $(WHEEL)/site
	cd $(WHEEL)/site && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) --cache-dir $(abspath .mypy_cache) -p rotescope

screenshots: $(VENV)/.ready
	README_SCREENSHOTS=docs $(BIN)/python -m pytest -k screenshot tests/test_report.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find rotescope datasets train mitigate evaluate tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: Rotescope needs Python 3.11 or newer, and $(PYTHON) is '$$($(PYTHON) --version 2>&1)': try make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) >/dev/null || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "Setting up $(VENV), once: a few minutes, about 6 GB with PyTorch's CUDA build"
	$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $@
