# Two commands for a fresh machine: `make train` and `make test`.

# The first Python of 3.12 or newer, pyenv's too; failing that, one that uv brings.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEMO ?= runs/demo
TASKS := lesion stocks expressions

.PHONY: train test check format clean

train: .venv/installed
	@for task in $(TASKS); do \
		$(BIN)/python -m experiments.train --config=$$task/configs/demo.py --workdir=$(DEMO)/$$task && \
		$(BIN)/python -m experiments.evaluate --workdir=$(DEMO)/$$task || exit 1; \
	done
	@echo 'A run keeps config.json, checkpoints/, metrics.jsonl, learning_curves.png, tensorboard/ and evaluation/test/:'
	@for task in $(TASKS); do echo "  $(CURDIR)/$(DEMO)/$$task"; done

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2

check: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs *.egg-info

.venv/bin/python:
	@if [ -n "$(PYTHON)" ]; then $(PYTHON) -m venv .venv; \
	elif python3 -m pip install --quiet uv && python3 -m uv venv --python 3.12 --seed .venv; then true; \
	else echo 'Triptych needs Python 3.12 or newer: install it, then run make again.' >&2; exit 1; fi

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ .venv/installed
