# make lab                    environment, installation, JupyterLab on the course
# make lab COURSE_LANG=en     the same in English, whatever the system's language (or =ko)
# make lab ARGS=--port=9000   with options of JupyterLab
# make lab TORCH_INDEX=URL    with torch from that index of packages, whatever GPU is here
# make quick                  what a contributor runs between two changes: under two minutes
# make test                   everything that decides whether the course is right
# make site                   the lessons as pages to read, in both languages: build/site
# make soak                   hours of random faults; goes on where it was interrupted
# make audit                  whether the tested versions have known vulnerabilities
# make coverage               which lines no test runs, also in ranks; TESTS=... for some tests only

# Ranks are processes of a POSIX system. Windows itself always sets this variable, WSL2 does not.
ifeq ($(OS),Windows_NT)
$(error dlcourse runs on Linux and macOS. On Windows it runs in WSL2: `wsl --install`, \
then `make lab` in the Ubuntu window)
endif

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# A half-made environment does not count as made.
.DELETE_ON_ERROR:
# Two pips at once would break the one environment.
.NOTPARALLEL:
.PHONY: lab quick test soak audit coverage lint build site clean

lab: $(VENV)/.lab
	$(BIN)/dlcourse lab $(if $(COURSE_LANG),--lang $(COURSE_LANG)) $(ARGS)

test: $(VENV)/.test lint
	$(BIN)/dlcourse build --check
# Several files of tests at a time, the longest first (tests/durations.json).
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Without what starts notebooks, browsers or many pools (the markers are in pyproject.toml).
quick: $(VENV)/.quick lint
	$(BIN)/dlcourse build --check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not ($(SLOW))'

# For 2 cores: much of a test is waiting.
WORKERS = 4
SLOW = notebooks or browser or exercises or engine or parity or cluster

# A tenth of a percent of it is in `make test`. ARGS='--minutes 30': begins no trial after so long.
soak: $(VENV)/.test
	$(BIN)/dlcourse bench soak --share 1 --lessons --record data/soak.json $(ARGS)

# Slower than `make test`, and a failure is no reason to give no figure: `make test` decides.
coverage: $(VENV)/.test
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

audit: $(VENV)/.test
	$(BIN)/python .ci/audit.py

lint: $(VENV)/.quick
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(VENV)/.lab
	$(BIN)/dlcourse build

# From the runs that docs/executed/ keeps; ARGS='--execute 03' makes a lesson's again.
site: $(VENV)/.site
	$(BIN)/python docs/make_site.py $(ARGS)

ANOTHER = name another Python, as in make PYTHON=python3.12

# One sentence for each way in which a Python cannot make the environment.
$(VENV)/bin/python:
	@$(PYTHON) -c '' >/dev/null 2>&1 \
	  || { echo "$(PYTHON) does not run here: $(ANOTHER)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dlcourse needs Python 3.11 or newer, $(PYTHON) is older: $(ANOTHER)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' \
	  || { echo "dlcourse is tested on Python 3.11 to 3.13, $(PYTHON) is newer: $(ANOTHER)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv (on Debian and Ubuntu: apt install python3-venv): $(ANOTHER)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# install.py holds to the tested versions and chooses torch's build. Libraries that only tests set
# beside ours (600 MB) come with `make test` alone.
INSTALL = TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python install.py
SETUP = pyproject.toml constraints.txt install.py

$(VENV)/.lab: $(SETUP) | $(VENV)/bin/python
	$(INSTALL)
	@touch $@

$(VENV)/.quick: $(SETUP) | $(VENV)/bin/python
	$(INSTALL) test
	@touch $(VENV)/.lab $@

$(VENV)/.test: $(SETUP) | $(VENV)/bin/python
	$(INSTALL) test peers cluster hub site
	@touch $(VENV)/.lab $(VENV)/.quick $(VENV)/.site $@

$(VENV)/.site: $(SETUP) | $(VENV)/bin/python
	$(INSTALL) site
	@touch $(VENV)/.lab $@

clean:
	rm -rf $(VENV) results
