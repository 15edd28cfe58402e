# Two commands are all a newcomer needs: `make demo` and `make test`. Each makes .venv first, once.
#
#   PYTHON    the Python to build .venv with (3.11 to 3.13):       make demo PYTHON=python3.12
#   PIP_ARGS  passed to pip, to pick another index or torch build:  make demo PIP_ARGS="--extra-index-url URL"
#             constraints.txt pins torch 2.13.0. A CPU build (2.13.0+cpu) that pip's own configuration finds wins over
#             the default one, which on Linux brings CUDA along; on a machine without a GPU name PyTorch's CPU index here.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test slow check format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1|/' | column -t -s '|'

install: $(VENV)/.core  ## make .venv with what aha needs to run
	@:

install-dev: $(VENV)/.dev  ## the same, with what its tests need
	@:

demo: install  ## teach the built-in model countdown in about five minutes (runs/countdown)
	$(BIN)/aha train countdown
	@echo "  (aha lies in $(BIN); once in each shell: . $(BIN)/activate)"

test: install-dev  ## run the tests
	$(BIN)/python -m pytest -q

slow: install-dev  ## run the slow tests
	$(BIN)/python -m pytest -q -m slow

check: install-dev  ## what CI holds: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

format: install-dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench  ## print our speed beside the peers', measured in one run on this machine
	$(BIN)/python -m bench

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# Each stamp is touched after its install succeeded, so an interrupted install is repeated and a finished one is not.
$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "aha needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing aha into $(VENV) (a minute or two, once)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the test tools into $(VENV) (once)"
	@$(INSTALL) -e '.[dev]'
	@$(INSTALL) -e '.[tasks]' || echo "reasoning-gym was not installed (its pycosat needs a C compiler); its tests are skipped"
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the peers to measure against into $(VENV) (once)"
	@$(INSTALL) -e '.[bench]'
	@touch $@
