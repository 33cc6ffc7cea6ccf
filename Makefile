# make demo and make test need Python >= 3.10, pip and make; they set up the rest themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test setup check docs bench scaling torture reproduce clean

demo: $(READY)
	$(BIN)/dskd demo

test: $(READY)
	$(BIN)/python -m pytest

setup: $(READY)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation site, in site/. Any warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Options go through ARGS, as in make bench ARGS=--quick
bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(ARGS)

scaling: $(READY)
	$(BIN)/python benchmarks/scaling.py $(ARGS)

# Every fault test; goes on where it was stopped, and writes the table of docs/reliability.md.
torture: $(READY)
	$(BIN)/python tests/faults/torture.py $(ARGS)

# make reproduce-mini DATA=..., and so for every study of evidence/studies.yaml: DATA holds
# tiny-imagenet-200/ (for reproduce-cifar100, cifar-100-python/), OUT takes all that is computed.
# make reproduce runs most of them, one after the other; each goes on where it was stopped.
OUT ?= runs/evidence
STUDIES := ablation exploration controls table weights configurations composition defaults pair why

reproduce-%: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=images))
	$(BIN)/python -m evidence.study $* "$(DATA)" "$(OUT)" $(ARGS)

# What the students of the table became.
reproduce-why: $(READY)
	$(BIN)/python -m evidence.why "$(OUT)" $(ARGS)

.NOTPARALLEL: # a study takes what those before it chose
reproduce: $(STUDIES:%=reproduce-%)

# Made again when what it installs changes; the package itself is linked, not copied.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("dskd needs Python 3.10 or newer: make PYTHON=python3.11 setup" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[timm,onnx,docs,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
