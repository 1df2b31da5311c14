# Everything from a fresh clone, with nothing but make and Python 3.11 or newer: it sets itself up in .venv.
#
#   make demo               the whole way in minutes, on synthetic wingbeats
#   make demo DATA=folder   the same on your own sound (SHORT=1: in about a minute, to see that it works)
#   make test               all tests (ARGS="tests/audio -k decode" for some)
#   make test-slow          the long trials
#   make test-slurm         the batch scripts under a real Slurm (Debian: slurm-wlm and munge; as root)
#   make lint types         ruff, the order of imports, and mypy
#   make site               the documentation as pages that need no network (site/index.html)
#   make packages           wheel and sdist, installed into a bare environment, and the demo from there
#   make bench-loading      one benchmark of benchmarks/ (ARGS="--help" for what it takes)
#
# On Windows there is no make: see "Without make" in README.md.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo

# The first Python that runs, is new enough and can make environments; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)

.PHONY: demo test test-slow test-slurm lint types format setup setup-dev packages pictures site clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/tymbal demo --output "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(SHORT),--short) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

# Under a Slurm of this machine alone, where slurm-wlm and munge are installed; skips where they are not.
test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow tests/hpc/test_real_slurm.py -rs $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-%: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/$(subst -,_,$*).py $(ARGS)

pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/pictures/make.py

site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

packages: $(VENV)/.installed
	.ci/packages $(abspath $(BIN)/python)

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Tymbal needs Python 3.11 or newer with venv (Debian: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps say for which pyproject.toml and constraints.txt the environment was made.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build dist site .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
