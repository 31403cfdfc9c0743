# Everything that a person or CI runs here. Needed: make, Python 3.10 or newer, and a package index within reach.
#
#   make setup         the virtual environment .venv alone, with everything that recipes need
#   make quickstart    set up, then the embedded example: pretrain, fine-tune, fuse, score, report
#   make test          set up, then the whole test suite
#   make test-kernels  the tests that calculate, once for each kind of processor that this one can stand for
#   make fuzz          readers on mutated input, 10,000 examples each; EXAMPLES=1000 for fewer
#   make fuzz-atheris  the same readers, guided by coverage: SECONDS=60 each, READER=tokenizer.json for one
#   make kills         the writing commands, killed at 200 events drawn at random and given again; KILLS=20 for fewer
#   make check         what CI wants: lint, types, tests with coverage
#   make docs          the site, into site/: every page, with its links checked
#   make tutorials     execute the notebooks of docs/tutorials again, with their outputs; ARGS=NAME for one
#   make compat        the oldest and the newest allowed torch, transformers and peft, in environments of their own
#   make peers         mergekit, peft and fusion-bench beside Tangora on the same inputs, in an environment of their own
#   make bench-gpu     what an NVIDIA GPU makes of steps, scoring, columns and fusions: under ten minutes; the others: benchmarks/README.md
#
# Another interpreter: make PYTHON=python3.12 ...   Options for pip (an index, say): make PIP_FLAGS='--index-url ...' ...

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
PEERS := .venv-peers
DOCS := .venv-docs
BIN := $(VENV)/bin
PIP_INSTALL = -m pip install --disable-pip-version-check $(PIP_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart setup setup-dev test test-kernels fuzz fuzz-atheris check lint types coverage format kills docs tutorials compat peers bench-peers bench-fuse bench-sweep bench-explorer bench-scale bench-gpu clean

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

# Each process begins with its own half of the tests, so that most fixtures are made once, and takes others at the end.
test: setup-dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Rounding differs between processors, and so may what a bound allows. PyTorch's own kernels, MKL, oneDNN and the OpenBLAS
# of NumPy and SciPy choose by the processor that they find, and can be told to be an older one. Before the colon: what
# the processor must have (a flag of /proc/cpuinfo; a kernel that it lacks would kill the process).
KERNELS := \
  sse4_2:ATEN_CPU_CAPABILITY=default,MKL_ENABLE_INSTRUCTIONS=SSE4_2,ONEDNN_MAX_CPU_ISA=SSE41,OPENBLAS_CORETYPE=Nehalem,OMP_NUM_THREADS=1 \
  avx:ATEN_CPU_CAPABILITY=default,MKL_ENABLE_INSTRUCTIONS=SSE4_2,ONEDNN_MAX_CPU_ISA=AVX,OPENBLAS_CORETYPE=Sandybridge,OMP_NUM_THREADS=2 \
  avx2:ATEN_CPU_CAPABILITY=avx2,MKL_ENABLE_INSTRUCTIONS=AVX2,ONEDNN_MAX_CPU_ISA=AVX2,OPENBLAS_CORETYPE=Haswell,OMP_NUM_THREADS=1 \
  avx2:ATEN_CPU_CAPABILITY=avx2,MKL_ENABLE_INSTRUCTIONS=AVX2,ONEDNN_MAX_CPU_ISA=AVX2,OPENBLAS_CORETYPE=Haswell,OMP_NUM_THREADS=2 \
  avx512vl:ATEN_CPU_CAPABILITY=avx512,MKL_ENABLE_INSTRUCTIONS=AVX512,ONEDNN_MAX_CPU_ISA=AVX512_CORE,OPENBLAS_CORETYPE=SkylakeX,OMP_NUM_THREADS=1 \
  avx512vl:ATEN_CPU_CAPABILITY=avx512,MKL_ENABLE_INSTRUCTIONS=AVX512,ONEDNN_MAX_CPU_ISA=AVX512_CORE,OPENBLAS_CORETYPE=SkylakeX,OMP_NUM_THREADS=2 \
  avx512vl:ATEN_CPU_CAPABILITY=default,MKL_ENABLE_INSTRUCTIONS=AVX512,ONEDNN_MAX_CPU_ISA=AVX2,OPENBLAS_CORETYPE=Prescott,OMP_NUM_THREADS=1
# What has nothing to round: words, files, pages, whole commands and runs.
NOT_NUMERIC := report/* peers/* test_cli.py test_readme.py test_packaging.py test_recipe.py test_hub_recipes.py test_files.py \
  test_fuzz.py test_run.py test_example.py test_fuse_benchmark.py test_explorer_benchmark.py test_*registry.py test_grid.py \
  test_header.py test_output.py test_checkpoint.py test_scheduler.py test_plan.py test_sources.py test_splits.py test_real_data.py
NUMERIC = $(NOT_NUMERIC:%=--ignore-glob='*/%') -m 'not slow' -k 'not end_to_end'

test-kernels: setup-dev
	@code=0; for kernels in $(KERNELS); do \
	  echo "== $$kernels"; \
	  if grep -qsw "$${kernels%%:*}" /proc/cpuinfo; then \
	    env $$(echo "$${kernels#*:}" | tr , ' ') $(BIN)/python -m pytest -n auto $(NUMERIC) $(ARGS) || code=1; \
	  else echo "this processor does not have them"; fi; \
	done; exit $$code

# Readers on mutated input, 10,000 examples each.
fuzz: setup-dev
	TANGORA_FUZZ=$(or $(EXAMPLES),10000) $(BIN)/python -m pytest -n auto --timeout 14400 tests/test_fuzz.py $(ARGS)

# The same readers by libFuzzer, which keeps input that reaches new lines; atheris is built for CPython 3.11 and newer on Linux.
fuzz-atheris: setup-dev
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt atheris==3.0.0
	PYTHONPATH=tests $(BIN)/python tests/fuzz_atheris.py $(READER) -max_total_time=$(or $(SECONDS),60) $(ARGS)

# Every writing command is killed in the midst, and given again; two at once, too.
kills: setup-dev
	$(BIN)/python tests/kills.py --kills $(or $(KILLS),200) --clock 5 --pairs 5 --result benchmarks/results/kills.json $(ARGS)

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

# The pages that come from the code are written in .venv; mkdocs has an environment without torch.
docs: setup-dev $(DOCS)/.installed
	$(BIN)/python docs/_code/generate.py build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --quiet $(ARGS)
	@echo "the site is in site/: open site/index.html"

# The site shows the notebooks as they are: this is for after a change of a tutorial, or of what it prints.
tutorials: setup-dev
	$(BIN)/python docs/_code/tutorials.py $(ARGS)

$(DOCS)/.installed: docs/_code/requirements.txt constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP_INSTALL) -c constraints.txt -r docs/_code/requirements.txt
	@touch $@

# The ends of the ranges in pyproject.toml; ARGS='--edges oldest --python python3.10' for one end on another Python, and
# ARGS='--torch torch==2.13.0+cpu' for one torch, such as a build for CPUs.
compat: setup-dev
	$(BIN)/python tests/compat.py --pip='$(PIP_FLAGS)' $(ARGS)

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
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[all,fast]'
	$(BIN)/python benchmarks/fuse_fast.py
	$(BIN)/python benchmarks/fuse_adapters.py
	$(BIN)/python benchmarks/fuse_many.py

# Every subset and every λ of the paper's protocol on columns of tangent adapters, and a few by a forward pass.
bench-sweep: setup
	$(BIN)/python benchmarks/sweep.py $(ARGS)

# Jobs of known length on simulated workers of a Ray cluster, and plans of many subsets; about ten minutes.
bench-scale: setup-dev
	cd benchmarks && ../$(BIN)/python scale.py $(ARGS)

# Training steps, scoring, columns and fusions on a GPU, beside peft and the CPU; under ten minutes and 21 GB of disk.
bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# The explorer's page in Chromium: its size, and how long a move of a slider takes.
bench-explorer: setup-dev
	$(BIN)/python benchmarks/explorer.py $(ARGS)

clean:
	rm -rf build dist site htmlcov .coverage .coverage.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
