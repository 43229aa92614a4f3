# make demo   environment, install, and a whole search on the embedded teacher
# make test   environment, and every check: lint, types, imports, tests
# make test-all   the same, slow tests included, and more examples of every law
# make lint   the checks without the tests
# make docs   the documentation as a site, in site/
# make clean  remove the environment and the caches; runs/ stays
#
# Variables: PYTHON (3.11 or newer), BUDGET (of the demo), ARGS (more flags for the demo's search).

PYTHON ?= python3
BUDGET ?= 1M
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_DOCS := $(VENV)/.installed-docs
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test tests test-all lint docs clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m search.run --preset studies/presets/demo.toml --budget $(BUDGET) --study-name demo-$(BUDGET)-short $(ARGS)
	@echo
	@echo "To go on from here:"
	@echo "    source $(BIN)/activate"
	@echo "    python -m search.run --help"

# Side by side: mypy has one core for a minute, and the tests are as long as both cores are busy.
test: $(INSTALLED_TEST)
	$(MAKE) --no-print-directory -j 2 lint tests

tests: $(INSTALLED_TEST)
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "not gpu" --hypothesis-profile thorough

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Nothing but the installation needs a network. The variable silences a notice of mkdocs-material about its successor.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html; its search needs a server: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf $(VENV) site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second run start at once; a changed pyproject.toml or constraints.txt renews them.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (PyTorch is large: this takes a few minutes the first time)"
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_TEST): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), tools for the tests included"
	$(PIP_INSTALL) -e '.[test]'
	@touch $(INSTALLED) $(INSTALLED_DOCS) $@

$(INSTALLED_DOCS): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), tools for the documentation included"
	$(PIP_INSTALL) -e '.[docs]'
	@touch $(INSTALLED) $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Slimsearch needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not there')." \
	       "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' has to work; it failed as shown above. On Debian and Ubuntu:" \
	       "apt-get install python3-venv." >&2; exit 2; }
