# `make run` and `make test` do everything on a fresh machine; `make check` is what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= orin_vs_dre.yaml
OUT ?= results/$(basename $(notdir $(CONFIG)))
CODE := resv dre_sim energy_models resv_sim scripts tests

.PHONY: run test check bench golden docs images format clean

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

docs: $(VENV)/.run  ## regenerate docs/validation.md, its section on the trace aside
	$(BIN)/resv-sim validate all --markdown docs/validation.md
	$(BIN)/resv-sim reproduce all --markdown docs/validation.md

images: $(VENV)/.run  ## regenerate the README's pictures and print its table
	$(BIN)/resv-sim --config orin_vs_dre.yaml --out results/orin_vs_dre
	$(BIN)/resv-sim --config policies_compared.yaml --out results/policies_compared
	cp results/orin_vs_dre/figures/latency.png results/policies_compared/figures/fidelity_decode.png docs/images/
	$(BIN)/python scripts/readme_table.py results/orin_vs_dre

format: $(VENV)/.dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
