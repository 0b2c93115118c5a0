# Everything a person or the CI script runs. `make help` lists it.
#
#   PYTHON=python3.12      the interpreter that makes the virtual environments
#   PYTEST_ARGS="-k add"   passed to pytest
#   WORKERS=2              processes that share the tests
#   SEED=2                 another order of the tests
#   PIP_ARGS, DEMO_ARGS, BENCH_ARGS, SOAK_ARGS   passed to pip install, the demo, ...

PYTHON ?= python3
PYTEST_ARGS ?=
PIP_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
# More than cores: most tests wait more than they compute. They share the engines.
WORKERS ?= 6
# Tests are shuffled, in the same way each time unless another seed is passed.
SEED ?= 1
# Tests of one file share collections, and stay together. tests/fixtures/selection.py
# sets the marks.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --randomly-seed=$(SEED) --second-attempts

# Workers and programs that tests start read the byte code of those before them.
unexport PYTHONDONTWRITEBYTECODE

# Relative paths and `python -m ...` only: both survive a checkout in a path with spaces.
VENV := .venv
VENV26 := .venv-pymilvus26
VENVNEWEST := .venv-newest
VENVBENCH := .venv-bench
VENVUPSTREAM := .venv-upstream
LITE2 := .milvus-lite-2
VENVDOCS := .venv-docs
# What the tests with pymilvus 3.0 need.
TESTED := $(VENV)/.installed-dev $(VENVUPSTREAM)/installed.txt $(LITE2)/installed.txt
INSTALL := -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo bench bench-layout bench-questions bench-scale bench-moving bench-loops quality soak docs messages check test test-pymilvus30 test-pymilvus26 test-newest test-slow test-ray lint types format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed-demo ## install the demo's requirements and run it
	$(VENV)/bin/python examples/async_rag.py $(DEMO_ARGS)

bench: $(VENVBENCH)/.installed ## compare with upstream and the raw client; 25 minutes
	$(VENVBENCH)/bin/python -m benchmarks $(BENCH_ARGS)

bench-layout: $(VENV)/.installed-dev ## indexes, partition keys, operations on many nodes, and what tenants cost; 40 minutes
	$(VENV)/bin/python -m benchmarks.layout $(BENCH_ARGS)

bench-questions: $(VENVBENCH)/.installed-demo ## from questions to nodes and from text to rows, with a real model; 10 minutes
	$(VENVBENCH)/bin/python -m benchmarks.questions $(BENCH_ARGS)
	$(VENVBENCH)/bin/python -m benchmarks.ingestion --minilm

bench-scale: $(VENV)/.installed-dev ## a million nodes: adding, queries as the collection grows, deletes, a killed server; 20 minutes
	$(VENV)/bin/python -m benchmarks.scale $(BENCH_ARGS)

bench-moving: $(VENV)/.installed-dev ## a copy of 100,000 nodes from Milvus Lite to a server; 15 minutes
	$(VENV)/bin/python -m benchmarks.moving $(BENCH_ARGS)

bench-loops: $(VENVBENCH)/.installed ## asyncio's event loop and uvloop's; 4 minutes
	$(VENVBENCH)/bin/python -m benchmarks.loops $(BENCH_ARGS)

quality: $(VENV)/.installed-demo ## recall and nDCG of dense, full-text and hybrid retrieval
	$(VENV)/bin/python -m benchmarks.retrieval

check: lint types $(VENV)/.installed-dev ## lint, types, and the tests that take no time; for the inner loop
	$(VENV)/bin/python $(PYTEST) -m '(pure or path) and not slow and not other_colour' $(PYTEST_ARGS)

# Tests wait half of the time: types, and pymilvus 2.6, go beside the tests with 3.0, and are shown after them.
test: lint $(TESTED) $(VENV26)/.installed ## lint, types, and the tests with both lines of pymilvus
	@mkdir -p build; \
		$(MAKE) types test-pymilvus26 WORKERS=2 > build/beside.log 2>&1 & beside=$$!; \
		trap 'kill $$beside' INT TERM; \
		$(MAKE) test-pymilvus30; status=$$?; \
		wait $$beside || status=$$?; \
		cat build/beside.log; exit $$status

test-pymilvus30: $(TESTED) ## the tests with pymilvus 3.0
	@echo "==== tests with pymilvus 3.0 ($(VENV)) ===="
	$(VENV)/bin/python $(PYTEST) -m 'not slow and not other_colour' $(PYTEST_ARGS)

test-pymilvus26: $(VENV26)/.installed ## the tests that meet the client, with pymilvus 2.6
	@echo "==== tests with pymilvus 2.6 ($(VENV26)) ===="
	$(VENV26)/bin/python $(PYTEST) -m 'both_lines and not slow' $(PYTEST_ARGS)

test-newest: $(VENVNEWEST)/bin/python ## the same with the newest pymilvus and llama-index-core, pre-releases included
	$(VENVNEWEST)/bin/python $(INSTALL) -e '.[lite,test]'
	$(VENVNEWEST)/bin/python $(INSTALL) --upgrade --pre pymilvus 'llama-index-core<0.15'
	$(VENVNEWEST)/bin/python $(PYTEST) -m 'both_lines and not slow' $(PYTEST_ARGS)

test-slow: $(TESTED) ## what `make test` has in a short form only, and the soak
	$(VENV)/bin/python $(PYTEST) -m 'slow or other_colour' $(PYTEST_ARGS)
	$(MAKE) soak

test-ray: $(VENV)/.installed-dev ## jobs of Ray whose workers are killed, twenty of them; 5 minutes
	$(VENV)/bin/python -m pytest tests/test_ray.py $(PYTEST_ARGS)

soak: $(VENV)/.installed-dev ## ten minutes of faults and restarts on each engine: is anything lost?
	$(VENV)/bin/python -m tests.soak $(SOAK_ARGS)

docs: $(VENVDOCS)/.installed ## build the documentation into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(VENVDOCS)/bin/python -m mkdocs build --strict

messages: $(VENV)/.installed-dev ## write every message, each with the call that provokes it, into build/messages.md
	mkdir -p build
	$(VENV)/bin/python -W ignore -m tests.messages_page > build/messages.md

lint: $(VENV)/.installed-dev ## ruff: rules and formatting; and which package imports which
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()'

types: $(VENV)/.installed-dev ## mypy, strict
	$(VENV)/bin/python -m mypy

format: $(VENV)/.installed-dev ## apply ruff's formatting and its safe fixes
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean: ## remove the environments and everything generated
	rm -rf $(VENV) $(VENV26) $(VENVNEWEST) $(VENVBENCH) $(VENVUPSTREAM) $(VENVDOCS) $(LITE2) .milvus-standalone build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file says what an environment holds, so that a second call installs nothing.
# The demo and the tests with pymilvus 3.0 share one environment: the tests run the demo too.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(INSTALL) -e '.[demo,dev]' 'pymilvus>=3.0,<3.1'
	touch $@ $(VENV)/.installed-demo

$(VENV26)/.installed: pyproject.toml constraints.txt | $(VENV26)/bin/python
	$(VENV26)/bin/python $(INSTALL) -e '.[lite,test]' 'pymilvus>=2.6,<2.7'
	touch $@

$(VENVBENCH)/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt | $(VENVBENCH)/bin/python
	$(VENVBENCH)/bin/python $(INSTALL) -r benchmarks/requirements.txt -e '.[lite,test]'
	touch $@

$(VENVBENCH)/.installed-demo: $(VENVBENCH)/.installed
	$(VENVBENCH)/bin/python $(INSTALL) -r benchmarks/requirements.txt -e '.[demo]'
	touch $@

# The site is made from the sources: neither the package nor what it needs is installed.
$(VENVDOCS)/.installed: pyproject.toml constraints.txt | $(VENVDOCS)/bin/python
	awk -F '"' '/^docs = / {for (i = 2; i < NF; i += 2) print $$i}' pyproject.toml > $(VENVDOCS)/requirements.txt
	$(VENVDOCS)/bin/python $(INSTALL) -r $(VENVDOCS)/requirements.txt
	touch $@

# Without a network it says so, and the tests that need it are skipped.
$(VENVUPSTREAM)/installed.txt: tests/fixtures/upstream.py | $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.fixtures.upstream

$(LITE2)/installed.txt: tests/fixtures/lite2.py | $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.fixtures.lite2

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.x ..."; exit 1; }
	$(PYTHON) -m venv $*
