# The main path from nothing: `make demo`. Needs Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# TensorRT on this machine: rtx (GeForce, RTX and workstation cards) or trt (data centre cards, Jetson).
FLAVOR ?= rtx

.PHONY: help demo try test gpu-report clean
help:
	@echo "make demo   install, export the sample student, verify it, answer two prompts, compare with its teacher"
	@echo "make try    the committed bundle answers; no torch is installed or used"
	@echo "make test   lint, format, types and the test suite"
	@echo "make gpu-report   on a machine with an NVIDIA GPU: its tests and benches on one page (FLAVOR=rtx or trt)"

# A torch that this Python already has is used; otherwise the pinned one is installed.
$(VENV)/.training: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is too old; blockstep trains and exports with Python 3.11 or newer: make PYTHON=python3.12 demo" >&2; exit 2; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
		$(PYTHON) -m venv --system-site-packages $(VENV); grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else \
		$(PYTHON) -m venv $(VENV); cp constraints.txt $(VENV)/constraints.txt; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[cpu,train,export]'
	@touch $@

$(VENV)/.testing: $(VENV)/.training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[test]'
	@touch $@

.try/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .try
	.try/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[cpu]'
	@touch $@

demo: $(VENV)/.training
	$(BIN)/python samples/demo.py

try: .try/.installed
	@cat samples/prompt_math.txt
	@.try/bin/blockstep samples/student.bundle "$$(cat samples/prompt_math.txt)" --show

test: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

gpu-report: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[$(FLAVOR)]'
	@$(BIN)/python samples/gpu_report.py

clean:
	rm -rf $(VENV) .try build dist *.egg-info
