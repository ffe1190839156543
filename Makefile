PYTHON ?= python3
VENV ?= .venv
# Any requirement that pip takes; TORCH="torch==2.13.0" make test picks a version.
TORCH ?= torch
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' -)

.PHONY: demo test lint types bench gpu docs wheel clean

demo: $(INSTALLED)
	$(BIN)/python -m examples.quickstart

test: $(INSTALLED)
	$(BIN)/pytest -n auto --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.pinv
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.choices
	$(BIN)/python -m benchmarks.ragged

gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu --out out/gpu --resume

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED)
	BIN=$(abspath $(BIN)) PYTHON=$(PYTHON) .ci/check-wheel

clean:
	rm -rf $(VENV) .venv-wheel build dist site out *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q '$(TORCH)'
	$(BIN)/pip install -q -e '.[dev]' '$(TORCH)'
	rm -f $(VENV)/installed-*
	touch $@
