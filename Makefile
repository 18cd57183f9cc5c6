# Everything happens in .venv; PYTHON makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(wildcard $(foreach depth,* */* */*/*,vtrain/kernels/$(depth).hpp vtrain/kernels/$(depth).cpp))

.PHONY: demo test slow lint bench paper gpu gpu-wheels clean

demo: $(VENV)/.installed-demo
	$(BIN)/vtrain demo

test: $(VENV)/.installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.kernels

paper: $(VENV)/.installed-dev
	$(BIN)/python -m experiments paper_scale

# One stamp for each set of extras.
$(VENV)/.installed-demo: $(SOURCES) $(VENV)/bin/python
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/.installed-dev: $(SOURCES) $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed-demo

$(VENV)/bin/python:
	@command -v c++ >/dev/null || { echo "vtrain builds its kernels here: install a C++ compiler (Debian: apt-get install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing (Debian: apt-get install python3-venv)"; exit 1; }

# On a machine with a GPU, PyTorch, CuPy and build tools, and perhaps no network: DEVICE, OUT and PARTS may be given.
DEVICE ?= cuda
OUT ?= gpu-results
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu/setup.sh
	.gpu-venv/bin/python -m benchmarks.gpu --device $(DEVICE) --out $(OUT) $(PARTS)

# What such a machine lacks, for its Python 3.12; fetched where there is a network. With PYTHON a Python 3.12, the
# extension too, for a machine that can't build it.
gpu-wheels:
	rm -rf .gpu-wheels
	$(PYTHON) -m pip download --quiet --dest .gpu-wheels --no-deps --only-binary=:all: --python-version 3.12 \
	  --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -r benchmarks/gpu/wheels.txt
	if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then \
	  $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir .gpu-wheels/built .; fi
	du -sh .gpu-wheels

clean:
	rm -rf $(VENV) build dist .gpu-venv .gpu-site .gpu-build .gpu-wheels
