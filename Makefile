# One entry for everything: `make run` shows the tool at work, `make test` is what CI checks. Both share one .venv;
# `make run` installs the core dependencies only, `make test` adds torch, transformers and the development tools.
# What is installed is decided by pyproject.toml alone; a stamp in .venv says whether it is up to date.

PYTHON ?= python3
VENV ?= .venv
GPU ?= h100
MODEL ?= llama-3.1-70b
WORKERS ?= 2
# Set it empty to install whichever torch pip picks.
CONSTRAINTS ?= constraints-cpu.txt

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CREATED := $(VENV)/.created
CORE := $(VENV)/.core
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint types imports format engines bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(CORE) ## Profile MODEL on GPU from the shipped measurements (no GPU, no torch needed)
	$(BIN)/puzzlebench profile --gpu $(GPU) --model $(MODEL) --source kernels

test: lint types imports ## Every check CI runs
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(DEV) ## Style and formatting, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## Type checks
	$(BIN)/mypy

imports: $(DEV) ## Which package may import which
	$(BIN)/lint-imports

format: $(DEV) ## Format, and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

engines: $(DEV) ## Exported models in other engines (see docs/engines.md: where their interpreters are)
	$(BIN)/python -m pytest tests/engines -m engines

bench: $(DEV) ## Time our own code
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean: ## Remove the environment, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks

# An environment whose interpreter is gone (Python was upgraded or removed) is made again.
ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null),1)
.PHONY: $(CREATED)
endif

$(CREATED):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "Error: '$(PYTHON)' not found; install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Error: puzzlebench needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name a newer one with PYTHON=..." >&2; exit 1; }
	@rm -f $(BIN)/python*
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(CORE): pyproject.toml $(CREATED)
	@echo "Installing puzzlebench into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

# Dependency groups need pip 25.1, and Python 3.11 brings an older one.
$(DEV): pyproject.toml $(CREATED) $(wildcard $(CONSTRAINTS))
	@echo "Installing puzzlebench, torch and the development tools into $(VENV)"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[run,ray]' --group dev $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@ $(CORE)
