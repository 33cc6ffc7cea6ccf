# make demo and make test need Python >= 3.10, pip and make; they set up the rest themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo demo-graphs demo-segment test test-fast coverage setup check pages docs bench bench-loader scaling torture reproduce clean

help: ## lists these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'

demo: $(READY) ## trains on handwritten digits: a teacher and its students
	$(BIN)/dskd demo

demo-graphs: $(READY) ## compares students of a graph: online, alone, and with a teacher
	$(BIN)/dskd graphs demo

# On generated images, or as in make demo-segment DATA=scans, where scans holds img and mask.
demo-segment: $(READY) ## trains on few masks and many seeds, and draws what was learned
	$(BIN)/dskd segment demo $(if $(DATA),--data "$(DATA)")

# One process for each core, but at most four: each takes 2 GB of memory. One more for all tests, because some wait for
# processes that they start. More with make test ARGS="-n 16"; part of the tests with make test ARGS="-n 0 tests/data".
# Compiled files are kept (the variable is empty), so that only the first process writes them.
processes = $(shell $(PYTHON) -c "import os; print(min(4, $(1) + (os.cpu_count() or 1)))")
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

test: $(READY) ## runs all tests
	$(PYTEST) -n $(call processes,1) $(ARGS)

test-fast: $(READY) ## runs the tests that are not slow
	$(PYTEST) -n $(call processes,0) -m "not slow and not distributed" $(ARGS)

coverage: $(READY) ## runs all tests; fails if they execute less than 92 % of the lines
	$(PYTEST) -n $(call processes,1) --cov --cov-report=term $(ARGS)

setup: $(READY) ## installs the package and its tools in .venv

check: $(READY) ## checks format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

pages: $(READY) ## writes the pages that come from the code, and the lists of methods in other pages
	$(BIN)/python docs/write_settings.py
	$(BIN)/python docs/write_methods.py
	$(BIN)/python docs/write_commands.py

docs: $(READY) ## builds the documentation in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Options go through ARGS, as in make bench ARGS=--quick
bench: $(READY) ## measures the time of a training step
	$(BIN)/python benchmarks/bench.py $(ARGS)

# As in make bench-loader DATA=photos ARGS="--workers 4"; DATA holds a folder for each class.
bench-loader: $(READY) ## measures the loader of streamed images against torchvision's and timm's
	$(if $(DATA),,$(error set DATA, as in make bench-loader DATA=photos))
	$(BIN)/python benchmarks/loader.py "$(DATA)" $(ARGS)

scaling: $(READY) ## measures how time and memory grow
	$(BIN)/python benchmarks/scaling.py $(ARGS)

# Goes on where it was stopped, and writes the table of docs/reliability.md.
torture: $(READY) ## runs every fault test
	$(BIN)/python tests/faults/torture.py $(ARGS)

# make reproduce-mini DATA=..., and so for every study of evidence/studies.yaml: DATA holds
# tiny-imagenet-200/ (for reproduce-cifar100, cifar-100-python/), OUT takes all that is computed.
# make reproduce runs most of them, one after the other; each goes on where it was stopped.
OUT ?= runs/evidence
STUDIES := ablation exploration controls table weights configurations composition defaults pair why

reproduce-%: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=images))
	$(BIN)/python -m evidence.study $* "$(DATA)" "$(OUT)" $(ARGS)

# Students that learn from images without labels, too. DATA holds a folder of photos for each class.
reproduce-unlabelled: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=photos))
	$(BIN)/python -m evidence.unlabelled "$(DATA)" "$(OUT)" $(ARGS)

# Students of graphs. DATA holds an .npz file for each, see docs/results/protocol-graphs.md.
reproduce-graphs: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=graphs))
	$(BIN)/python -m evidence.graphs "$(DATA)" "$(OUT)" $(ARGS)

# Masks and seeds, and DSKD at every pixel. DATA holds train and val, each with Img and GT.
reproduce-segmentation: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=cardiac))
	$(BIN)/python -m evidence.segmentation "$(DATA)" "$(OUT)" $(ARGS)

# One student with early exits against smaller ones. DATA holds tiny-imagenet-200/.
reproduce-early-exits: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=images))
	$(BIN)/python -m evidence.early_exits "$(DATA)" "$(OUT)" $(ARGS)

# All steps of "DSKD first", one after the other; with PHOTOS=photos also the one on photos of flowers.
FIRST := first-baselines first-search first-leading first first-pair first-abstract
reproduce-first: $(READY)
	$(if $(DATA),,$(error set DATA, as in make $@ DATA=images))
	set -e; for step in $(FIRST); do $(BIN)/python -m evidence.study $$step "$(DATA)" "$(OUT)" $(ARGS); done
	$(if $(PHOTOS),$(BIN)/python -m evidence.study first-flowers "$(PHOTOS)" "$(OUT)" --anyway)

# What the students of the table became.
reproduce-why: $(READY)
	$(BIN)/python -m evidence.why "$(OUT)" $(ARGS)

.NOTPARALLEL: # a study takes what those before it chose
reproduce: $(STUDIES:%=reproduce-%) ## repeats the studies; needs DATA, see evidence/studies.yaml

# Made again when what it installs changes; the package itself is linked, not copied.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("dskd needs Python 3.10 or newer: make PYTHON=python3.11 setup" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[datasets,parquet,onnx,openvino,torchao,torchcodec,ray,slurm,tune,graphs,segmentation,transformers,docs,dev]'
	touch $(READY)

clean: ## removes .venv, caches and what was built
	rm -rf $(VENV) build dist site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
