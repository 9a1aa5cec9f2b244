# make demo: search, evaluate, report on a real model.   make test: what CI runs.   make test-all: every test.   make docs: the pages as a site.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := -c constraints.txt
# pip, without its warnings about folders of wheels in its configuration that are not there
SHELL := bash
PIP = $(BIN)/python -m pip install --quiet $(CONSTRAINTS) 2> >(grep -vE "is ignored: it is (either a non-existing path|neither a file nor a directory)" >&2)

.PHONY: install install-dev demo test test-all docs browser screenshots clean

install: .venv/.installed
install-dev: .venv/.installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo installing into .venv
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	@echo installing into .venv
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/.installed

.venv/.installed-docs: .venv/.installed
	@echo installing what builds the documentation
	@$(PIP) -e '.[docs]'
	@touch $@

demo: .venv/.installed
	@bash scripts/demo.sh $(BIN)/selfspec

test: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not model" --durations=5 -n auto --dist worksteal
	$(BIN)/python -m pytest -m model --durations=5

test-all: .venv/.installed-dev  # every structure, searcher and matrix
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not model" --durations=20 -n auto --dist worksteal
	$(BIN)/python -m pytest -m model --durations=5

docs: .venv/.installed-docs  # build/site/index.html; a broken link or page is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

browser:  # Debian's chromium, for the tests marked `browser`
	apt-get update
	apt-get install -y --no-install-recommends chromium

screenshots: .venv/.installed-dev  # of the dashboard, for the pages
	SELFSPEC_SCREENSHOTS=docs $(BIN)/python -m pytest -m browser tests/test_dashboard_browser.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
