# Everything installs into .venv from pyproject.toml and constraints.txt; nothing else is needed but
# Python 3.11 or newer, make and a package registry.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
CPU_TORCH := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Data that stands beside the checkout is used in the place of a download.
ifneq ($(wildcard ../shared/datasets),)
export CONVSCOPE_DATA ?= $(abspath ../shared/datasets)
endif

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-backends lint types bench clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

run: $(VENV)/.run ## Do the whole exercise on MNIST: three networks, figures, a comparison with the published results
	$(BIN)/convscope exercise

test: $(VENV)/.dev ## Run the tests that take seconds
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.dev ## Run every test, the slow ones and those in a browser too
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not gpu and not backends' --durations=10

test-backends: $(PEERS)/.installed ## Train with Keras's own fit on JAX and TensorFlow, in an environment of its own
	$(PEERS)/bin/python -m pytest -m backends tests/test_backends.py

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory types; \
		else echo "npm is not here: the types of the explorer's scripts were not checked."; fi

types: .ci/types/node_modules/.package-lock.json ## Check the types in the explorer's scripts (part of lint; needs npm)
	cd .ci/types && node_modules/.bin/tsc

.ci/types/node_modules/.package-lock.json: .ci/types/package-lock.json
	cd .ci/types && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

bench: $(PEERS)/.installed ## Measure speed against Keras, PyTorch, ONNX Runtime, JAX and TensorFlow (takes a while)
	$(PEERS)/bin/python benchmarks/throughput.py
	$(PEERS)/bin/python benchmarks/prediction.py
	$(PEERS)/bin/python benchmarks/time_to_accuracy.py
	$(PEERS)/bin/python benchmarks/step_profile.py
	$(PEERS)/bin/python benchmarks/zoo.py

clean: ## Remove the environments and everything that can be made again; runs stay
	rm -rf .venv .venv-* .ci/types/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convscope needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# Linux without an NVIDIA driver gets torch without CUDA, which is several gigabytes smaller. Where the index of
# these builds cannot be reached, torch comes with the other packages.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@[ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || [ -e /proc/driver/nvidia ] || \
		$(PIP) --no-deps --timeout 10 --retries 0 --index-url $(CPU_TORCH) torch || \
		echo "$(CPU_TORCH) could not be reached: torch will be the build that the package registry has."
	@touch $@

# A stamp file for each set of packages: the second call starts at once.
$(VENV)/.run: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) --editable '.[attribution,labels]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) --editable '.[dev,all]'
	@touch $@ $(VENV)/.run

# JAX and TensorFlow are there to be compared with; convscope itself never sees them.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[bench,test]'
	@touch $@
