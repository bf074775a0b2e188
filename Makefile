# Everything on a fresh machine that has Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Small models are fastest on one thread.
RUN := OMP_NUM_THREADS=1 $(BIN)

.PHONY: demo test lint clean

demo: $(VENV)/.ready
	$(RUN)/erasediff-lora demo --concept cat --overwrite

test: lint
	$(RUN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
