# Two commands: `make demo` shows recfit on real data, `make test` runs everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

DATA ?= runs/seeds/ml-1m.txt

.PHONY: demo test lint docs bench-seeds bench-seeds-quick seeds-data clean

demo: $(VENV)/.train
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	@$(BIN)/python tests/need.py chromium
	@$(BIN)/python tests/need.py npm
	@$(BIN)/python tests/need.py promtool prometheus
	@$(BIN)/python tests/need.py redis-server
	$(MAKE) --no-print-directory lint docs
	OMP_NUM_THREADS=1 $(BIN)/pytest

# The scenarios that recfit started from: hours; interrupt it, the same command goes on. DATA, BEAUTY and FRAPPE are in
# docs/seeds.md; without BEAUTY or FRAPPE that scenario is left out. recfit's own choice comes last, since `optimize` ends
# with an exit code of its own where nothing holds the budget.
RECIPES := $(BIN)/python -m benchmarks.recipes
SEEDS := benchmarks/seeds
bench-seeds: seeds-data $(VENV)/.dev
	$(BIN)/python $(SEEDS)/movie/original.py $(DATA) runs/seeds/movie
	$(RECIPES) $(SEEDS)/movie/settings.toml $(SEEDS)/movie/recipes.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/ncf/settings.toml $(SEEDS)/ncf/recipes.toml --data $(DATA) --metric recall@10
	$(RECIPES) $(SEEDS)/ncf/settings.toml $(SEEDS)/ncf/ncf_two_stage.toml --data $(DATA) --metric recall@10
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/small/recipes.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/small/small_codes.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/small/small_bits.toml --data $(DATA)
	$(RECIPES) $(SEEDS)/small/settings.toml $(SEEDS)/distillation/recipes.toml --data $(DATA)
	$(if $(BEAUTY),$(RECIPES) $(SEEDS)/beauty/settings.toml $(SEEDS)/beauty/recipes.toml --data $(BEAUTY))
	$(if $(BEAUTY),$(RECIPES) $(SEEDS)/beauty/settings.toml $(SEEDS)/beauty/beauty_bits.toml --data $(BEAUTY))
	$(if $(FRAPPE),$(BIN)/python -m benchmarks.seeds.ctr.run $(FRAPPE) runs/seeds/ctr)
	$(if $(FRAPPE),$(BIN)/python -m benchmarks.seeds.ctr.run $(FRAPPE) runs/seeds/ctr \
		--recipes $(SEEDS)/ctr/ctr_features.toml)
	$(BIN)/python -m benchmarks.optimized $(SEEDS)/movie/optimize.toml

# Says at once what is missing; MovieLens-1M then lies where optimize.toml, which takes no other data, looks.
GIVE := pass DATA=FILE (MovieLens-1M) and, if you like, BEAUTY=FILE (Amazon Beauty) and FRAPPE=FOLDER; \
	docs/seeds.md says what they are and where to get them
seeds-data:
	@test -f "$(DATA)" || { echo "DATA=$(DATA) is no file; $(GIVE)" >&2; exit 1; }
	@test -z "$(BEAUTY)" || test -f "$(BEAUTY)" || { echo "BEAUTY=$(BEAUTY) is no file; $(GIVE)" >&2; exit 1; }
	@test -z "$(FRAPPE)" || test -f "$(FRAPPE)/frappe.test.libfm" || \
		{ echo "FRAPPE=$(FRAPPE) holds no frappe.test.libfm; $(GIVE)" >&2; exit 1; }
	@mkdir -p runs/seeds
	@cmp -s "$(DATA)" runs/seeds/ml-1m.txt || cp "$(DATA)" runs/seeds/ml-1m.txt

# The movie scenario on MovieLens-100K, which it fetches, with a small deep original.
bench-seeds-quick: $(VENV)/.dev
	$(BIN)/python $(SEEDS)/movie/original.py ml-100k runs/seeds/quick --quick
	$(RECIPES) $(SEEDS)/quick/settings.toml $(SEEDS)/quick/recipes.toml

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
