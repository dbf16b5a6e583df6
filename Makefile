# Every target sets up .venv by itself; what it needs is python3 (3.11 or newer), g++ and make.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= examples/tinylm
# Installed before the package: hfgraph asks for "torch>=2.11", and for that pip takes the newest release, which hfgraph
# may not have been tested with, and on many machines gigabytes of CUDA libraries. Another one: make test TORCH=torch==2.12.0
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench docs lint clean

demo: $(READY)
	$(BIN)/python examples/demo.py $(MODEL)

test: $(READY)
	$(BIN)/python -m pytest -n 2

# Larger geometries, all tasks and systems; a long run. Results and plots go into benchmarks/results/.
bench: $(READY)
	$(BIN)/python benchmarks/run.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir out/site

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist out

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hfgraph needs Python 3.11 or newer, found " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
