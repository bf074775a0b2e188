# Everything on a fresh machine that has Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
OLDEST := .venv-oldest
PLAY := .venv-play
BIN := $(VENV)/bin
# Small models are fastest on one thread.
RUN := OMP_NUM_THREADS=1 $(BIN)
TEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-gpu test-oldest test-play lint docs clean

demo: $(VENV)/.ready
	$(RUN)/erasediff-lora demo --concept cat --overwrite

test: lint docs
	$(RUN)/python $(TEST)

# Those that need a graphics card, on one: install a CUDA build of torch into the environment first.
test-gpu: $(VENV)/.ready
	TEST_GPU=1 $(BIN)/python -m pytest -m gpu tests/gpu

# The same tests with the oldest versions that pyproject.toml allows.
test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(TEST)

# The playground's: what it needs lies over the other environment, since Gradio wants an older Pillow than the others.
test-play: $(PLAY)/.ready
	PLAY=1 OMP_NUM_THREADS=1 $(PLAY)/bin/python -m pytest tests/playground

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

# The documentation as a site, in build/site; a link that leads nowhere fails it.
docs: $(VENV)/.ready
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.ready: requirements.txt pyproject.toml
$(OLDEST)/.ready: requirements-oldest.txt pyproject.toml
%/.ready:
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --disable-pip-version-check -r $<
	$*/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(PLAY)/.ready: requirements-play.txt $(VENV)/.ready
	$(PYTHON) -m venv $(PLAY)
	$(BIN)/python $(SITE) > $$($(PLAY)/bin/python $(SITE))/below.pth
	$(PLAY)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(PLAY) runs build dist *.egg-info
