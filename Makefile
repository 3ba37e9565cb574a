# make lab                    environment, installation, JupyterLab on the course
# make lab COURSE_LANG=en     the same in English, whatever the system's language (or =ko)
# make lab ARGS=--port=9000   with options of JupyterLab
# make test                   everything that decides whether the course is right

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# A half-made environment does not count as made.
.DELETE_ON_ERROR:
.PHONY: lab test lint build clean

lab: $(VENV)/.lab
	$(BIN)/dlcourse lab $(if $(COURSE_LANG),--lang $(COURSE_LANG)) $(ARGS)

test: $(VENV)/.test lint
	$(BIN)/dlcourse build --check
# Two files of tests at a time, in the order of tests/conftest.py: much of a test is waiting.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

build: $(VENV)/.lab
	$(BIN)/dlcourse build

ANOTHER = name another Python, as in make PYTHON=python3.12

# One sentence for each way in which a Python cannot make the environment.
$(VENV)/bin/python:
	@$(PYTHON) -c '' >/dev/null 2>&1 \
	  || { echo "$(PYTHON) does not run here: $(ANOTHER)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dlcourse needs Python 3.11 or newer, $(PYTHON) is older: $(ANOTHER)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv (on Debian and Ubuntu: apt install python3-venv): $(ANOTHER)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Always under the constraints, torch too: an unpinned torch brings gigabytes of GPU packages to a
# machine that has no GPU.
$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lab,test,peers]'
	@touch $@

clean:
	rm -rf $(VENV) results
