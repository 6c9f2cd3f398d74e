# Each target sets up what it needs by itself and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVING := $(VENV)/.serving
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
PRECISION ?= auto
RUNTIME ?= auto
FUZZ_S ?= 300
PROCESSES ?= 3
DEMO := $(sort $(wildcard build/demo/*.safetensors))

unexport PYTHONDONTWRITEBYTECODE # some images set it: each process would compile two thousand modules anew

.DEFAULT_GOAL := help
.PHONY: help setup serve models test bench test-deploy fuzz soak lint clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 16

# What `make serve` needs is half of all: the rest builds portable engines, tests and draws.
$(SERVING): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"Python 3.10 to 3.13 is needed, this is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[build,openvino,pictures,tracing,triton]'
	$(PIP) --no-deps 'nvidia-pytriton; sys_platform == "linux" and platform_machine == "x86_64"' # pyproject.toml says why
	@touch $@

$(READY): $(SERVING)
	$(PIP) 'eca-serve[bench,dev,tensorrt-rtx]'
	@touch $@

setup: $(READY) ## Set up all that the tests and load tests need

models: $(SERVING) ## Build the demo networks, each as what is fastest here; PRECISION=fp32: exact
	@$(BIN)/eca-build compile $(DEMO) --labels build/demo/labels.txt --images build/demo/images --expose-gates \
		--precision $(PRECISION) --runtime $(RUNTIME)

serve: export ECA_DEFAULT_MODEL ?= resnet14-eca
serve: models ## Build the demo networks, start Triton and the gateway
	@exec $(BIN)/eca-serve up

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: export OMP_WAIT_POLICY ?= PASSIVE # several processes share the cores
test: lint ## Lint, types, unit and integration tests
	$(BIN)/python -m pytest -n $(PROCESSES) --no-loadscope-reorder

bench: $(READY) ## Load tests and their report, ten minutes; FULL=1: the whole matrix; ARGS: see tests/load/README.md
	$(BIN)/python -m tests.load.bench --preset $(if $(FULL),full,default) $(ARGS)

test-deploy: $(READY) ## Build the images and try the CPU stack for real; needs a Docker engine
	$(BIN)/python -m pytest tests/deploy

fuzz: $(READY) ## Long fuzzing of images, requests and the OpenAPI document, then FUZZ_S seconds of libFuzzer on each parser
	$(PIP) 'eca-serve[fuzz]'
	$(BIN)/python -m pytest -m fuzz
	$(BIN)/python -m tests.fuzz.decoder -max_total_time=$(FUZZ_S)
	$(BIN)/python -m tests.fuzz.parsers -max_total_time=$(FUZZ_S)

soak: models setup ## Half an hour of good and bad traffic: does anything grow or stay behind?
	$(BIN)/python -m tests.load.soak --minutes 30

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache $(filter-out model_repository/README.md,$(wildcard model_repository/*))
