# make setup | test | lint | demo | docs | bench-gpu | clean
# Everything happens in .venv; nothing outside the repository is changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# One process a core, and whoever is done takes tests from another; but one for all where a GPU must not be shared.
PYTEST_OPTIONS ?= -q $(if $(wildcard /dev/nvidia0),,-n auto --maxprocesses 8 --dist worksteal)
# Another Python for the benchmarks, with PyTorch for CUDA in it: make bench-gpu BENCH_PYTHON=python3
BENCH_PYTHON ?= $(BIN)/python

.PHONY: setup test lint types tests demo docs bench-gpu clean

setup: $(STAMP)

# The package is installed again when its dependencies, its build or its compiled kernels change.
$(STAMP): pyproject.toml constraints.txt $(wildcard setup.py) $(wildcard src/tamis/kernels/cpu/*.cpp src/tamis/kernels/cpu/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Tamis needs Python 3.11 to 3.13; name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "cannot create a virtual environment; install your system's python3-venv package"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,demo]"
	@touch $(STAMP)

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/cuda/mypy.ini

tests: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

demo: $(STAMP)
	$(BIN)/tamis demo --output demo-output

# Write the generated parts of README and docs again.
docs: $(STAMP)
	$(BIN)/python -m tamis.cli.reference docs/reference/cli.md
	$(BIN)/python benchmarks/tables.py

# Whole models, then layers; a benchmark that fails does not keep the others from running.
bench-gpu: $(if $(filter $(BIN)/python,$(BENCH_PYTHON)),$(STAMP))
	@failed=; for script in benchmarks/bench_cuda.py benchmarks/bench_wgmma.py benchmarks/bench_kernels.py benchmarks/bench_kernels_8bit.py benchmarks/bench_launch.py benchmarks/bench_masks.py benchmarks/bench_start.py $(sort $(wildcard benchmarks/bench_cuda_*.py)); do \
		echo "$$script"; PYTHONPATH=src $(BENCH_PYTHON) $$script || failed="$$failed $$script"; \
	done; \
	$(BENCH_PYTHON) benchmarks/tables.py; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build demo-output .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find src -name '*.so' -delete
