# Every target makes what it needs, the virtual environment included.
#   make demo            the whole recipe in miniature, on video files it writes itself
#   make demo-caption    the same encoders learn to describe clips; takes longer
#   make test            every test that this machine can run
# PYTHON picks the interpreter; TORCH what is installed first (an unpinned torch may bring gigabytes of CUDA packages).

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
SOURCES := $(wildcard csrc/*)

.PHONY: demo demo-caption test test-all check bench gpu gpu-build gpu-smoke gpu-bench gpu-test gpu-sanitize gpu-more gpu-dry-run clean

demo: $(VENV)/.installed
	$(BIN)/fastvivit demo --out demo

demo-caption: $(VENV)/.installed
	$(BIN)/fastvivit demo --captions --out demo-caption

# A process a core, and one thread in each: most tests are too small for two.
WORKERS ?= auto
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-all: check compile-report test

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.cpp csrc/*.cu csrc/*.h tests/cuda_shim/*
	$(BIN)/codespell

.PHONY: compile-report
compile-report: $(VENV)/.installed
	$(BIN)/python -m benchmarks.compile_report
	$(BIN)/python -m benchmarks.compile_cuda

bench: $(VENV)/.installed
	$(BIN)/fastvivit bench --save

# Every encoder of the paper: memory, FLOPs and time over masks, frames and sizes; then docs/encoders.md.
.PHONY: sweep
sweep: $(VENV)/.installed
	$(BIN)/python -m benchmarks.sweep --save --plot docs/pictures
	$(BIN)/python docs/make_encoders.py

# On a machine with a GPU, with the Python it is given: no virtual environment and no network. Under ten minutes, in stages
# that can be run alone: make gpu STAGES="smoke bench", or make gpu-smoke. A copy without its history is told its commit:
# make gpu COMMIT=... (results name it).
STAGES ?= build smoke bench test sanitize more
GPU = $(PYTHON) benchmarks/gpu.py $(if $(COMMIT),--commit $(COMMIT))
gpu:
	$(GPU) --stages $(STAGES)

gpu-build gpu-smoke gpu-bench gpu-test gpu-sanitize gpu-more:
	$(GPU) --stages $(@:gpu-%=%)

# The same on a CPU as far as it goes: Triton's interpreter, tiny shapes, nothing kept.
gpu-dry-run:
	$(GPU) --stages $(STAGES) --dry-run

$(VENV)/.installed: pyproject.toml setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install -e ".[test]"
	$(PIP) install ruff==0.17.6 clang-format==23.1.5 codespell==2.4.3
	@$(BIN)/python -c "from fastvivit import _native; print(_native.reason() or 'compiled CPU kernels: ready')"
	@touch $@

clean:
	rm -rf build dist *.egg-info fastvivit/*.so fastvivit/_build.json demo demo-caption .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
