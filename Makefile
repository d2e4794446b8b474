# make run: the five stages in a few minutes, and a page with all of it. make test: the tests.
# make bench: how long it takes beside the reports' loop. make reproduce: every number of
# README.md and figures/results.md, in one to two days; STAGES="data best" does these stages only,
# QUICK=1 just tries the path. make mutants: changes of the code that no test notices, in some
# hours. Each makes .venv first if need be.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench reproduce mutants

run: .venv/run.stamp
	$(eval DATA := $(shell $(BIN)/python -m common.dataset.default_source))
	$(BIN)/python inspect_data.py $(DATA)
	$(BIN)/python evaluate.py $(DATA)
	$(BIN)/python train.py original sampler $(DATA)
	$(BIN)/python lr_sweep.py sampler --learning-rates 1e-5 1e-3 0.1 --epochs 3 $(DATA)
	$(BIN)/python adversarial.py models/sampler.pt --ensemble-epsilons 4 --images 9 $(DATA)
	@echo
	@echo file://$(abspath figures/index.html)

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4

bench: .venv/run.stamp
	$(BIN)/python benchmarks/run.py

reproduce: .venv/test.stamp
	$(BIN)/python benchmarks/reproduce.py $(STAGES) $(if $(QUICK),--quick)

mutants: .venv/test.stamp
	$(BIN)/mutmut run
	$(BIN)/mutmut results

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.x names another")'
	$(PYTHON) -m venv .venv

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

.venv/test.stamp: requirements-dev.txt .venv/run.stamp
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@
