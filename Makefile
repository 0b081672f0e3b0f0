PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-embedded test-search check coverage bench format
demo: .venv/demo
	$(BIN)/bough demo

test: .venv/dev
	$(BIN)/python -m pytest -n 2

# compilers and emulators of microcontrollers (Debian's packages), and torchao; CMSIS_NN=FOLDER also tests the optimized kernels
test-embedded: .venv/dev
	apt-get install -y --no-install-recommends gcc gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
	$(PIP) torchao==0.18.0
	$(BIN)/python -m pytest -n 2 tests/exporting/embedded

# database servers (Debian's packages) for studies that several machines share; their workers are killed at ten moments
test-search: .venv/dev
	apt-get install -y --no-install-recommends postgresql mariadb-server
	$(PIP) psycopg[binary] pymysql
	BOUGH_KILLS=10 $(BIN)/python -m pytest tests/searching

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs README.md
	$(BIN)/python -m pytest -n 2 tests/test_docstrings.py tests/test_readme.py $(shell find tests -name '*page.py')

# branch coverage of the engine: most of the tests, two to three times as long as without
coverage: .venv/dev
	$(BIN)/python -m pytest -n 2 --cov-branch --cov-report=term:skip-covered $(patsubst %,--cov=src/bough/%,spaces ops graph tracing planning cutting)

bench: .venv/dev
	$(PIP) --no-deps torch-pruning
	$(BIN)/python -m benchmarks.overhead

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

.venv/demo: .venv/base
	$(PIP) -e .[demo]
	touch $@

# torchvision and timm come without their dependencies: those would bring another build of torch
.venv/dev: .venv/base
	$(PIP) -e .[dev]
	$(PIP) --no-deps torchvision timm
	touch $@
