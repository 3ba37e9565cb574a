# make lab                    environment, installation, JupyterLab on the course (Korean)
# make lab COURSE_LANG=en     the same in English
# make test                   everything that decides whether the course is right

PYTHON ?= python3
COURSE_LANG ?= ko
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: lab test lint build clean

lab: $(VENV)/.lab
	$(BIN)/dlcourse lab --lang $(COURSE_LANG)

test: $(VENV)/.test lint
	$(BIN)/dlcourse build --check
# Two files of tests at a time, in the order of tests/conftest.py: much of a test is waiting.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

build: $(VENV)/.lab
	$(BIN)/dlcourse build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dlcourse needs Python 3.11 or newer: make PYTHON=python3.12 lab"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: an unpinned torch brings gigabytes of GPU packages to a
# machine that has no GPU.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $$(grep -E '^torch==' constraints.txt)
	@touch $@

$(VENV)/.lab: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lab,test,peers]'
	@touch $@

clean:
	rm -rf $(VENV) results
