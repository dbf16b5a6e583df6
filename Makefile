# Every target sets up .venv by itself; what it needs is python3 (3.11 or newer), g++ and make.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= examples/tinylm
# Installed before the package: hfgraph asks for "torch>=2.11", and for that pip takes the newest release, which hfgraph
# may not have been tested with, and on many machines gigabytes of CUDA libraries. Another one: make test TORCH=torch==2.12.0
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python examples/demo.py $(MODEL)

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hfgraph needs Python 3.11 or newer, found " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
