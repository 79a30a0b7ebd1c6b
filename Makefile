# `make run` and `make test` do everything on a fresh machine; `make check` is what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= orin_vs_dre.yaml
OUT ?= results/$(basename $(notdir $(CONFIG)))
CODE := resv dre_sim energy_models resv_sim scripts tests

.PHONY: run test check bench golden docs format clean

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.run

run: $(VENV)/.run  ## set up and run the main job
	$(BIN)/resv-sim --config $(CONFIG) --out $(OUT)

test: $(VENV)/.dev  ## set up and pass the tests
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.dev  ## format, lint, types, import layers, tests
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(VENV)/.run  ## speed and memory, each beside its mark
	$(BIN)/python scripts/bench.py

golden: $(VENV)/.dev  ## rewrite the golden breakdowns; look at the diff
	$(BIN)/python -m pytest tests/test_golden.py --update-golden

docs: $(VENV)/.run  ## regenerate the hardware section of docs/validation.md
	$(BIN)/resv-sim validate all --markdown docs/validation.md

format: $(VENV)/.dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
