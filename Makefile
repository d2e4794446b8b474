# make run: all stages in order. make test: the tests. make bench: how long it takes beside the
# reports' loop. make mutants: changes of the code that no test notices, in some hours.
# Each makes .venv first if need be.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench mutants

run: .venv/run.stamp
	$(BIN)/python inspect_data.py
	$(BIN)/python evaluate.py
	$(BIN)/python train.py original
	$(BIN)/python lr_sweep.py --epochs 2
	$(BIN)/python adversarial.py

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4

bench: .venv/run.stamp
	$(BIN)/python benchmarks/run.py

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
