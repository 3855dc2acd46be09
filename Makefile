VENV ?= .venv
PYTHON := $(VENV)/bin/python
# With the optional libraries, so that their tests run and are not skipped.
EXTRAS := test,dicom,distributed,kaggle,litert,onnx
# The oldest and newest Python for which TensorFlow has wheels.
OLDEST := 11
NEWEST := 13

# Two at a time; the tests of one file stay together, since they share what is costly to make.
# The order is that of tests/conftest.py.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install search test format clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## the environment in .venv

search: $(VENV)/.installed ## search the drawn sample; needs no network once installed
	$(PYTHON) run_search.py

test: $(VENV)/.installed-test ## format, lint, then every test
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest $(SHARED) -m "not slow"
	$(PYTHON) -m pytest $(SHARED) -m slow --durations=12

format: $(VENV)/.installed-test ## let ruff rewrite the code
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean: ## remove the environment and caches, never reports/
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info

# `python -m venv` again on a folder that exists only repairs it.
$(VENV)/.installed: setup.cfg pyproject.toml
	@python=$$(for candidate in python3 python3.13 python3.12 python3.11; do \
		if $$candidate -c "import sys, venv, ensurepip; \
	sys.exit(not (3, $(OLDEST)) <= sys.version_info[:2] <= (3, $(NEWEST)))" 2>/dev/null; \
		then echo $$candidate; break; fi; done); \
	if [ -z "$$python" ]; then \
		echo "No Python 3.$(OLDEST) to 3.$(NEWEST) with venv was found. Install one, for example" \
			"with 'apt install python3.11-venv' or from https://www.python.org." >&2; exit 1; fi; \
	echo "Creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	@echo "Installing (some 1.5 GB of libraries, minutes on the first time)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@
