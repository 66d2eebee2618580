# Each target makes its own .venv where none is; one that is there is used as it is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEMO := $(VENV)/.demo-installed
GROUPS := $(VENV)/.groups-installed
WORKERS ?= 2
ARGS ?=

# One thread per test process: the models of the tests are so small that threads only wait.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-hub cookbook test acceptance lint type format bench gpu clean

$(RUNTIME): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(DEMO): $(RUNTIME)
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	touch $@

$(GROUPS): $(RUNTIME)
	$(PIP) install --quiet -c constraints.txt --group test --group lint --group typing
	touch $@

demo: $(DEMO)               ## a chain, RAG, an agent, structured output: the two embedded members, offline
	$(BIN)/python -m langchain_ensemble.demo

demo-hub: $(DEMO)           ## the same with two small instruct models of the Hub (1.7 GB, once)
	$(BIN)/python -m langchain_ensemble.demo --hub

cookbook: $(GROUPS)         ## run the notebooks from top to bottom and keep what they print
	$(BIN)/python tools/run_cookbook.py

test: $(GROUPS)             ## the whole suite, about 17 minutes on 2 cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not slow and not network" $(ARGS)

acceptance: $(GROUPS)       ## ten times the random cases, and the long soaks; the log is committed
	ACCEPTANCE=10 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 3600 --durations 25 \
		-m "not gpu and not network" $(ARGS) 2>&1 | sed -u "s,$(CURDIR),.,g" | tee benchmarks/acceptance.log

lint: $(GROUPS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(GROUPS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(GROUPS)
	$(BIN)/mypy

bench: $(GROUPS)            ## the benchmarks of speed, about 12 minutes: one table and plots in benchmarks/README.md
	$(BIN)/python benchmarks/run.py $(ARGS)

gpu: $(GROUPS)              ## every test marked gpu, then a short fused decode on the accelerator
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python -m langchain_ensemble.demo --device auto

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
