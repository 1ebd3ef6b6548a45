PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_DIR ?= runs/demo

# Without compiled modules every start takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

# Huge pages for what is allocated, and memory kept for the next step: a fifth of the CPU time of
# training on small images goes into fresh pages otherwise. GNU's C library alone reads this.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max=2

.PHONY: setup demo test test-browser lint docs scaling parity verify bench

setup: $(INSTALLED)

# The marker comes last, so that an interrupted installation is started again.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing the dependencies into $(VENV) (a minute or two)'
	@$(PIP) -e '.[train,dev]'
	@touch $@

demo: setup
	$(BIN)/python main.py --config=configs/synthetic_demo.py --workdir=$(DEMO_DIR)

test: setup
	$(BIN)/python -m pytest

# The report in Chromium or Chrome, which must be installed (Debian: apt install chromium).
test-browser: setup
	@$(PIP) -e '.[browser]'
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, in .cache/site. A broken link or a page outside the menu is an error.
docs: setup
	@$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Training and embedding on this machine's CPU against PyTorch and ONNX Runtime: nine minutes on two
# idle cores. The table goes into docs/performance.md.
bench: setup
	@$(PIP) -e '.[benchmark,export,parity]'
	$(BIN)/python -m benchmarks.cpu

# The tables of docs/scaling.md, for TPUs and GPUs: the training step is compiled twenty-one times,
# which takes forty minutes. After an interruption: make scaling OPTIONS=--keep
scaling: setup
	@$(PIP) -e '.[tpu]'
	@$(PIP) --no-deps --upgrade --target .cache/cuda jax-cuda13-plugin jax-cuda13-pjrt
	PYTHONPATH=.cache/cuda $(BIN)/python -m benchmarks.aot --table $(OPTIONS)

# Both frameworks through the same steps (docs/parity.md): seven minutes. The exit status is 1 if a
# figure exceeds its bound. The report goes to .cache/parity.
parity: setup
	@$(PIP) -e '.[parity]'
	$(BIN)/python -m studies.pytorch.parity $(OPTIONS)

# Every format of the demo, each verified in an environment that holds one runtime alone
# (docs/export.md). They are made in .cache/verify; the first time takes a few minutes.
verify: setup
	@$(PIP) -e '.[export,parity]'
	$(BIN)/pgfl export $(DEMO_DIR) --formats=stablehlo,onnx,saved_model,torch,litert --out=.cache/verify/artifacts
	.ci/verify .cache/verify/artifacts jax onnxruntime openvino tensorflow torch litert
