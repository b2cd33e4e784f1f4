# Needs python3 (3.10 or newer), make and git; everything else goes into .venv.
# The first command makes .venv, later ones find it there.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help demo test lint install clean
.DELETE_ON_ERROR:

# An environment belongs to the folder that it was made in: in a moved or copied checkout its
# `detkit` would still be the old one. The stamp holds the folder, so that this is noticed.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

help:
	@echo "make demo     train a detector on the built-in pictures, test it, draw what it finds"
	@echo "make test     everything that must hold: style, types, tests"
	@echo "make lint     style and types only"
	@echo "make install  only make the virtual environment .venv"
	@echo "make clean    remove .venv, caches and the demo's run"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter; WORKERS=8 the processes that run tests"

install: $(INSTALLED)

demo: $(RUN)/.shown
	@echo "Detections on held-out pictures: $(RUN)/sheet.jpg"
	@echo "Measured: $(RUN)/metrics.json    To train again: make clean demo"

test: lint
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(INSTALLED)
	@echo "== ruff check"
	@$(BIN)/python -m ruff check .
	@echo "== ruff format"
	@$(BIN)/python -m ruff format --check .
	@echo "== mypy"
	@$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(RUN) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# pip puts opencv-python-headless (albumentations asks for it) and opencv-python into one folder,
# cv2. The last one installed wins; it should be the one that can open a window, unless the
# machine lacks the libraries that this one needs.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	    { echo "error: detkit needs Python 3.10 or newer; choose one: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) and installing detkit with its tools: some minutes, torch is large ..."
	@$(PYTHON) -m venv $(VENV) > /dev/null || { rm -rf $(VENV); \
	    echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -e ".[test]"
	@echo "$(CURDIR)" > $@

# best.pt appears after the first epoch, so it does not tell a finished training: the stamps do.
$(RUN)/.trained: | $(INSTALLED)
	@echo "== training on generated pictures of digits: at most 5 minutes on 2 CPU cores"
	@$(BIN)/python tools/train.py configs/quickstart.yaml
	@touch $@

$(RUN)/.tested: $(RUN)/.trained
	@echo "== testing on the held-out split"
	@$(BIN)/python tools/test.py $(RUN)/best.pt
	@touch $@

$(RUN)/.shown: $(RUN)/.tested
	@echo "== drawing detections"
	@$(BIN)/python demo/demo.py $(RUN)/best.pt $(RUN)/images --sheet $(RUN)/sheet.jpg
	@touch $@
