# make demo | make test | make lint: each first makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint
.DEFAULT_GOAL := help

help:
	@echo "make demo   draw a data set, train a detector on the CPU, write runs/demo/report.html"
	@echo "make test   run the test suite"
	@echo "make lint   ruff and pyright"

# Installed once; again when the list of packages changes.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	@echo "Installing into $(VENV): about 3 GB, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python scripts/train.py --config=configs/demo_shapes.py --workdir=runs/demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
