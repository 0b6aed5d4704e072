# make demo       the whole algorithm on this machine's CPU, under ten minutes, ends with a page of plots
# make test       the tests
# make servers    real vLLM and SGLang servers for the tests, outside of the project (5 GB)
# make ablation   the demo with more rows and three seeds (about an hour on two cores)
# make install    the virtual environment alone
# make lint       ruff and mypy
# make gpu-test   tests that need a Hopper GPU with Transformer Engine; writes gpu-tests.json
# make gpu-bench  benchmarks on it; writes gpu-bench.json and prints docs/gpu-results.md's table
#                 Both take GPU_PYTHON, the Python that has Transformer Engine (default python3),
#                 GPU_RESULTS, the folder for what they write, and more words in GPU_TEST, GPU_BENCH.
#
# PYTHON=python3.12 make demo   chooses the interpreter (3.10 to 3.13)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
GPU_PYTHON ?= python3
GPU_RESULTS ?= .
GPU_TEST ?=
GPU_BENCH ?= --seconds 350
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test servers servers-if-possible ablation install lint gpu-test gpu-bench clean

demo: $(VENV)/.installed
	$(BIN)/megatron-vr run examples/toy.yaml
	@echo "open runs/toy/report/index.html in a browser"

ablation: $(VENV)/.installed
	$(BIN)/megatron-vr run examples/toy-ablation.yaml --seeds 1,2,3
	@echo "open runs/toy-ablation/report/index.html in a browser"

install: $(VENV)/.installed

# Trainings of a few weights on many threads wait for each other more than they compute.
test: $(VENV)/.test-installed servers-if-possible
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20 --ignore=tests/gpu $(TESTS)

servers:
	@bash tests/servers/install.sh

servers-if-possible:
	@bash tests/servers/install.sh || echo "megatron-vr: the tests of real servers will be skipped"

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-test:
	@mkdir -p "$(GPU_RESULTS)"
	$(GPU_PYTHON) -m pytest tests/gpu -n 4 --dist loadfile \
		--gpu-report="$(GPU_RESULTS)/gpu-tests.json" $(GPU_TEST)

gpu-bench:
	@mkdir -p "$(GPU_RESULTS)"
	$(GPU_PYTHON) -m tools.bench.gpu --json "$(GPU_RESULTS)/gpu-bench.json" --markdown $(GPU_BENCH)

$(VENV)/.installed: setup.py constraints.txt
	@python=$$(bash tools/preflight.sh "$(PYTHON)") && $$python -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable .[test]
	$(BIN)/python tests/grading/published/fetch.py
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
