# Needs python3 (3.10 or newer), make and git; everything else goes into .venv.
# The first command makes .venv, later ones find it there.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
RUN := runs/quickstart
CACHE := $(or $(DETKIT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/detkit)
HELD_OUT = $(CACHE)/digits-v1-test-500-seed0-192x192/images

.DEFAULT_GOAL := help
.PHONY: help demo test lint install clean
.DELETE_ON_ERROR:

# An environment belongs to the folder that it was made in: in a moved or copied checkout its
# `detkit` and its scripts would still be the old ones. The stamp holds the folder to notice this.
ifneq "$(shell cat $(INSTALLED) 2>/dev/null)" "$(CURDIR)"
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
	@echo "$(VENV) is ready"

demo: $(RUN)/.shown
	@echo "Detections on held-out pictures: $(RUN)/sheet.jpg"
	@echo "Measured: $(RUN)/test/metrics.json    To train again: make clean demo"

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
	rm -f detkit/evaluation/_native*.so

# opencv-python and opencv-python-headless (albumentations asks for it) share the folder cv2, and
# the one installed last wins. pip's order leaves the one that can open a window; where the
# system's libraries for windows are missing that one cannot be imported at all.
$(INSTALLED): pyproject.toml $(wildcard detkit/evaluation/native/*.[ch])
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" 2> /dev/null || { \
	    echo "error: '$(PYTHON)' is no Python 3.10 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@{ test ! -e $@ || test "$$(cat $@)" = "$(CURDIR)"; } && $(BIN)/python -c "" 2> /dev/null || rm -rf $(VENV)
	@echo "== making $(VENV): some minutes (torch alone is a download of gigabytes on Linux)"
	@$(PYTHON) -m venv $(VENV) > /dev/null 2>&1 || { rm -rf $(VENV); \
	    echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PIP) install -e ".[test]"
	@$(BIN)/python -c "import cv2" 2> /dev/null || { \
	    echo "== libGL or glib is missing here: OpenCV without windows takes the place of the other"; \
	    $(PIP) install --force-reinstall --no-deps opencv-python-headless; }
	@echo "$(CURDIR)" > $@

# best.pt appears after the first epoch, so it does not tell a finished training: the stamps do.
$(RUN)/.trained: | $(INSTALLED)
	@echo "== training on generated pictures of digits: at most 5 minutes on 2 CPU cores"
	@$(BIN)/python tools/train.py $(if $(wildcard $(RUN)/last.pt),--resume $(RUN),configs/quickstart.yaml)
	@touch $@

$(RUN)/.tested: $(RUN)/.trained
	@echo "== testing on the held-out split"
	@$(BIN)/python tools/test.py $(RUN)/best.pt
	@touch $@

$(RUN)/.shown: $(RUN)/.tested
	@echo "== drawing detections"
	@$(BIN)/python demo/demo.py $(RUN)/best.pt $(HELD_OUT) --max-frames 16 --sheet $(RUN)/sheet.jpg
	@touch $@
