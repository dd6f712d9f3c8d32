# Everything runs in .venv, which the first target that needs it creates. CPU=1, given when it is created, takes
# PyTorch's build for CPUs on Linux, in place of pip's with gigabytes of CUDA: make sample CPU=1

PYTHON ?= python3
CLASS ?= 207
CONCEPTS := red_apple hamburger watermelon cactus rainbow jack-o\'-lantern balloon doughnut

venv_python := .venv/bin/python
pip_install := $(venv_python) -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(filter 1,$(CPU)),--extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help sample test lowest lint docs figures screenshots install develop clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

sample: .venv/.installed ## Draw images of one ImageNet class, golden retriever if not told otherwise (CLASS=207)
	$(venv_python) sample.py --class $(CLASS)

test: lint ## Check format, lint and types, then run the tests
	$(venv_python) -m pytest -n 2 --dist loadfile

lowest: ## Run the tests with the lowest versions of packages that pyproject.toml allows, in build/lowest
	$(PYTHON) -m venv --clear build/lowest
	build/lowest/bin/python -m pip install --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[train,features,evaluation,lora,app,test]'
	build/lowest/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/.installed-dev ## Check format, lint and types
	$(venv_python) -m ruff format --check .
	$(venv_python) -m ruff check .
	$(venv_python) -m mypy

docs: .venv/.installed-dev ## Build the documentation as a site, build/site/index.html, and check its links
	NO_MKDOCS_2_WARNING=1 $(venv_python) -m mkdocs build

figures: .venv/.installed-dev ## Draw the figures of README and concepts again
	$(venv_python) docs/figures.py
	$(venv_python) sample.py --out build/figures
	cp build/figures/grid.png docs/
	$(venv_python) sample.py --model var-emoji --num 4 --scales --out build/emoji $(foreach name,$(CONCEPTS),--class $(name))
	cp build/emoji/grid.png docs/emoji.png
	cp build/emoji/growth.gif docs/

screenshots: .venv/.installed-dev ## Take the screenshots of docs/app.md again; needs Chromium
	$(venv_python) benchmarks/page.py screenshots --out docs

install: .venv/.installed ## Install what sampling needs into .venv

develop: .venv/.installed-dev ## Install what training and the tests need into .venv

clean: ## Remove build products and caches; keeps .venv, runs and samples
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched last, so an interrupted step leaves none and runs again.
# The two stamps are removed before pip changes anything they stand for.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "VAR needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	@rm -f .venv/.installed .venv/.installed-dev
	$(pip_install) -e .
	@touch $@

.venv/.installed-dev: .venv/.created pyproject.toml constraints.txt
	@rm -f .venv/.installed .venv/.installed-dev
	$(pip_install) -e '.[dev]'
	@touch .venv/.installed $@
