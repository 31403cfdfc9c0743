# Everything that a person or CI runs here. Needed: make, Python 3.10 or newer, and a package index within reach.
#
#   make quickstart    set up, then the embedded example: pretrain, fine-tune, fuse, score, report
#   make test          set up, then the whole test suite
#   make check         what CI wants: lint, types, tests with coverage
#   make peers         mergekit, peft and fusion-bench beside Tangora on the same inputs, in an environment of their own
#
# Another interpreter: make PYTHON=python3.12 ...   Options for pip (an index, say): make PIP_FLAGS='--index-url ...' ...

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP_INSTALL = -m pip install --disable-pip-version-check $(PIP_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart setup setup-dev test check lint types coverage format peers bench-peers bench-fuse bench-sweep bench-explorer clean

help:
	@sed -n 's/^#  *make/make/p' Makefile

quickstart: setup
	$(BIN)/tangora run quickstart $(ARGS)

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Tangora needs Python 3.10 or newer, and this is " \
	  + sys.version.split()[0] + ": name another one, make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[all,dev]'
	@touch $@

test: setup-dev
	$(BIN)/python -m pytest -n auto $(ARGS)

check: lint types coverage

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry src

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup-dev
	$(BIN)/mypy

coverage: setup-dev
	$(BIN)/python -m pytest -n auto --cov --cov-report=term-missing:skip-covered --cov-report=json:.coverage.json $(ARGS)
	@$(BIN)/python -c 'import json; t = json.load(open(".coverage.json"))["totals"]; \
	  lines = t["covered_lines"] / t["num_statements"]; branches = t["covered_branches"] / t["num_branches"]; \
	  print(f"coverage: {lines:.1%} of lines (at least 90.0%), {branches:.1%} of branches"); raise SystemExit(lines < 0.9)'

# Where results agree with other tools, and where not; see docs/peers.md.
peers: bench-peers
	$(PEERS)/bin/python -m pytest tests/peers tests/test_peers.py $(ARGS)

# The tools that benchmarks/ compares with, beside Tangora and at its versions of everything.
bench-peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(PIP_INSTALL) -c constraints.txt -r benchmarks/peers.txt -e '.[all]'
	@touch $@

# Full checkpoints beside mergekit, adapters beside peft, a hundred adapters beside cat; needs about 9 GB of disk for a while.
bench-fuse: setup bench-peers
	$(BIN)/python benchmarks/fuse.py --peers $(PEERS) $(ARGS)
	$(BIN)/python benchmarks/fuse_adapters.py
	$(BIN)/python benchmarks/fuse_many.py

# Every subset and every λ of the paper's protocol on columns of tangent adapters, and a few by a forward pass.
bench-sweep: setup
	$(BIN)/python benchmarks/sweep.py $(ARGS)

# The explorer's page in Chromium: its size, and how long a move of a slider takes.
bench-explorer: setup-dev
	$(BIN)/python benchmarks/explorer.py $(ARGS)

clean:
	rm -rf build dist htmlcov .coverage .coverage.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
