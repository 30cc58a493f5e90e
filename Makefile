# Two commands: `make demo` shows recfit on real data, `make test` runs everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

DATA ?= runs/seeds/ml-1m.txt

.PHONY: demo test lint docs bench-seeds bench-seeds-quick clean

demo: $(VENV)/.train
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	@$(BIN)/python tests/need.py chromium
	@$(BIN)/python tests/need.py npm
	@$(BIN)/python tests/need.py promtool prometheus
	@$(BIN)/python tests/need.py redis-server
	$(MAKE) --no-print-directory lint docs
	OMP_NUM_THREADS=1 $(BIN)/pytest

# The scenarios that recfit started from. The movie original trains for an hour or more; interrupt it, the same command
# goes on. BEAUTY names a file of "user item item ..." lines, FRAPPE a folder with the two files that
# benchmarks/seeds/ctr/run.py reads; what is not named is left out.
RECIPES := $(BIN)/python -m benchmarks.recipes
SEEDS := benchmarks/seeds
bench-seeds: $(VENV)/.dev
	$(BIN)/python $(SEEDS)/movie/original.py $(DATA) runs/seeds/movie
	$(RECIPES) $(SEEDS)/movie/settings.toml $(SEEDS)/movie/recipes.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/ncf/settings.toml $(SEEDS)/ncf/recipes.toml --data $(DATA) --metric recall@10
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/small/recipes.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/distillation/recipes.toml --data $(DATA)
	$(if $(BEAUTY),$(RECIPES) $(SEEDS)/beauty/settings.toml $(SEEDS)/beauty/recipes.toml --data $(BEAUTY))
	$(if $(FRAPPE),$(BIN)/python -m benchmarks.seeds.ctr.run $(FRAPPE) runs/seeds/ctr)

# The movie scenario on MovieLens-100K with a small deep original, in half an hour.
bench-seeds-quick: $(VENV)/.dev
	$(BIN)/python $(SEEDS)/movie/original.py ml-100k runs/seeds/quick --quick
	$(RECIPES) $(SEEDS)/movie/quick.toml $(SEEDS)/movie/recipes.toml

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.train: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) build demo *.egg-info
