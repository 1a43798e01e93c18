# Two commands on a fresh machine: `make demo` (the main job) and `make test`. Both create .venv, install and build.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# The GPU wheel of faiss searches on the CPU too; take it where there is an NVIDIA driver.
FAISS  := $(if $(wildcard /proc/driver/nvidia/version),faiss-gpu,faiss-cpu)
SOURCES := $(wildcard csrc/* csrc/*/*) setup.py pyproject.toml constraints.txt

.PHONY: install demo demo-all test test-all test-oldest lint bench clean

install: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch torchvision "setuptools>=77" wheel ninja pybind11 numpy
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev,$(FAISS)]"
	touch $@

demo: install
	$(BIN)/puma demo

demo-all: install
	$(BIN)/puma demo --all

test: install lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: install lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# Builds and tests with the oldest torch that is supported, in a virtual environment of its own.
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "torch==2.10.*" "torchvision==0.25.*" "setuptools>=77,<82" wheel ninja pybind11 numpy
	.venv-oldest/bin/python -m pip install --quiet --no-build-isolation --force-reinstall --no-deps .
	.venv-oldest/bin/python -m pip install --quiet --no-build-isolation ".[dev,$(FAISS)]"
	.venv-oldest/bin/pytest -n auto -m "not slow" tests/ops tests/models tests/losses tests/regularizers tests/evaluation

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/puma bench

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info puma_plugin/*.so puma_plugin/_build_facts.json
