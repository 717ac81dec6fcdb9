# make demo and make test need nothing but Python 3.11 and make: each sets up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo test slow aarch64 lint docs format dist sbom release-check audit image-check clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt $(wildcard subcompress/native/*.[ch])
	$(PYTHON) -m venv .venv
	rm -f subcompress/_native.*
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	mkdir -p .venv/names
	ln -sfn ../../cli .venv/names/subcompress_cli
	ln -sfn ../../models .venv/names/subcompress_models
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# An image may forbid bytecode; then each of many processes would compile the package anew.
test: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: setup
	$(BIN)/python -m pytest -m slow

# Golden files on 64-bit ARM, in an emulator: tests/aarch64.sh says what it downloads.
aarch64: setup
	sh tests/aarch64.sh .aarch64 $(abspath $(BIN)/python)
	$(BIN)/python -m pytest -m slow tests/rebuild/test_aarch64.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/names:. $(BIN)/mypy

# Reads the sources as text, so that the site is built without importing torch: seconds. A warning is an error.
docs: setup
	$(BIN)/python -m mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.release: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[release]'
	touch $@

# Source distribution and wheels, in dist/: deploy/make_dist.py says which.
dist: .venv/.release
	$(BIN)/python deploy/make_dist.py

# What this environment consists of, in build/sbom.json, as CycloneDX.
sbom: .venv/.release
	mkdir -p build
	$(BIN)/python -m cyclonedx_py environment --no-validate --output-file build/sbom.json $(BIN)/python

# Before a release: installs what was built where there is no index and no compiler.
release-check: dist sbom
	PYTHON=$(BIN)/python sh deploy/prove_install.sh

# What PyPI knows against the pinned versions; fails where it does not answer for one of them.
audit: .venv/.release
	$(BIN)/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

# The serving image, built without a daemon in a clean root, its server asked, and its size. Needs root and debootstrap.
image-check:
	MODELS=deploy/kubernetes/models sh deploy/prove_dockerfile.sh serve

clean:
	rm -rf .venv build dist *.egg-info subcompress/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis
