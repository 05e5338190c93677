# The main path from nothing: `make demo`. Needs Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_FOLDER := import os, sys, torch; \
	print(os.path.dirname(os.path.dirname(torch.__file__))); \
	sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10))

# What `make test-oldest` holds at its lower bounds, and the tools that stay as they are pinned.
OLDEST := cpu train export serve capi lora transformers
TOOLS := pytest\|pytest-xdist\|hypothesis\|psutil\|httpx\|openai\|polygraphy\|tensorrt-rtx\|cuda-python\|matplotlib

# What `make test` runs: what needs Python alone and takes no seconds.
FAST := not browser and not native and not long and not client

# TensorRT on this machine: rtx (GeForce, RTX and workstation cards) or trt (data centre cards, Jetson).
FLAVOR ?= rtx

# GCC takes the stores of AMX's tile configuration for dead, since its header says that eight bytes of it are read; then
# the first product of llama.cpp crashes (ggml-org/llama.cpp issue 20824). These keep them. No cache: pip's would give a
# wheel that was built without them.
LLAMA_FLAGS := -DCMAKE_CXX_FLAGS='-fno-dse -fno-tree-dse' -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF

.PHONY: help demo try quick test test-all test-clients smoke test-oldest reliability train train-smoke coverage bom study bench gpu-report clean
help:
	@echo "make demo   install, export the sample student, verify it, answer two prompts, compare with its teacher"
	@echo "make try    the committed bundle answers; no torch is installed or used"
	@echo "make train   the recipe: baseline, teacher, students of three or four methods, engines, table (hours; TASK=pronounce, intents or math,code; PLAN=1 lists it)"
	@echo "make train-smoke   all stages of the recipe, tiny, in three minutes"
	@echo "make quick  the tests of the runtime and its server alone, half a minute; no torch is installed or used"
	@echo "make test   lint, format, types and the test suite"
	@echo "make test-all   the same, and what needs more than Python (Debian: apt install chromium gcc g++ make valgrind python3-dev qemu-user-static)"
	@echo "make smoke  one test per real client, server, host and emulated CPU; needs what test-all and test-clients need"
	@echo "make test-clients   a real server, and clients from PyPI and npm in .clients: openai, LiteLLM, lm-eval (Debian: apt install npm)"
	@echo "make test-oldest   the suite's fast part on the oldest versions that pyproject.toml allows, in .oldest"
	@echo "make reliability   damaged files, attacks and faults by the ten thousand: samples/results/reliability.md (an hour)"
	@echo "make coverage   the suite's branch coverage of runtime/ and export/"
	@echo "make bom    a runtime-only install's parts and sizes: samples/results/bom.json and runtime_only.md"
	@echo "make study  math and code: every method of distillation and its control, trained, judged, timed (a day): samples/results/study.md"
	@echo "make bench   a step, whole answers, the host, next to PyTorch and llama.cpp, on this idle machine: page and figure in samples/results"
	@echo "make gpu-report   on a machine with an NVIDIA GPU: every engine proved and timed, one page to paste (FLAVOR=rtx or trt)"
	@echo "make gpu-report NO_INSTALL=1   the same without a network, with what PYTHON has: nothing is installed"

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: $(PYTHON) is too old; expected Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
endef

# A torch that this Python already has, in a virtual environment or not, is used where it is new enough: the folder it
# lies in becomes a path of the new environment, and its version is not pinned. Otherwise the pinned one is installed.
$(VENV)/.training: pyproject.toml constraints.txt
	@$(check_python)
	@$(PYTHON) -m venv $(VENV); cp constraints.txt $(VENV)/constraints.txt
	@if found=$$($(PYTHON) -c '$(TORCH_FOLDER)' 2>/dev/null); then \
		echo "using the torch in $$found"; \
		echo "$$found" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"; \
		grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[cpu,train,export]'
	@touch $@

$(VENV)/.testing: $(VENV)/.training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[test]'
	@touch $@

.try/.installed: pyproject.toml constraints.txt $(wildcard runtime/*.py runtime/*/*.py runtime/*/*/*.py)
	@$(check_python)
	$(PYTHON) -m venv .try
	.try/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[cpu]'
	@touch $@

demo: $(VENV)/.training
	$(BIN)/python samples/demo.py

try: .try/.installed
	@cat samples/prompt_math.txt
	@.try/bin/blockstep generate samples/student.bundle "$$(cat samples/prompt_math.txt)" --show

test: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --dist loadfile -m "$(FAST)"

# Into the environment that `make test` uses, which gets the rest when that is first run.
$(VENV)/.quick: pyproject.toml constraints.txt
	@$(check_python)
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,serve,quick]'
	@touch $@

quick: $(VENV)/.quick
	PYTHONPATH=tests/support $(BIN)/python -m pytest -p quick -r fE -n logical --dist loadfile -m "$(FAST) and not process"

# The libraries at their lower bounds, the tools that test them as pinned. A torch that is there is used as it is, alone.
.oldest/.installed: pyproject.toml constraints.txt tests/oldest.py
	@$(check_python)
	@$(PYTHON) -m venv .oldest; $(PYTHON) tests/oldest.py $(OLDEST) > .oldest/oldest.txt
	@cut -d= -f1 .oldest/oldest.txt > .oldest/names.txt
	@tr -s _ - < constraints.txt | grep -viwFf .oldest/names.txt | grep -w '$(TOOLS)' >> .oldest/oldest.txt
	@if found=$$($(PYTHON) -c '$(TORCH_FOLDER)' 2>/dev/null); then \
		echo "using the torch in $$found"; mkdir -p .oldest/torch; \
		for part in torch torchgen functorch; do ln -sfn "$$found/$$part" .oldest/torch/$$part; done; \
		for part in "$$found"/torch-*.dist-info; do ln -sfn "$$part" .oldest/torch/; done; \
		echo "$$PWD/.oldest/torch" > "$$(.oldest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"; \
		sed -i '/^torch==/d' .oldest/oldest.txt; \
	fi
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .oldest/oldest.txt -e '.[cpu,train,export,test]'
	@touch $@

test-oldest: .oldest/.installed
	.oldest/bin/python -m pytest -n logical --dist loadfile -m "$(FAST)"

# They bring other libraries than those that the suite is tested with, so they get an environment of their own.
.clients/.installed: pyproject.toml constraints.txt tests/clients/package.json
	@$(check_python)
	@$(PYTHON) -m venv .clients
	.clients/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[clients]'
	@cp tests/clients/package.json .clients
	@if command -v npm > /dev/null; then npm install --prefix .clients --silent --no-audit --no-fund; \
	else echo "npm is not here: OpenAI's client for Node is left out" >&2; fi
	@touch $@

# NVIDIA's wheel of a whole Triton, which runs on a CPU too. Its stub misreads numpy 2, and Triton's client for gRPC wants
# an older protobuf than the pinned one; the wheel's own requirements are those of its Python side, which nothing here uses.
.triton/.installed: pyproject.toml constraints.txt
	@$(check_python)
	@$(PYTHON) -m venv .triton; grep -v '^numpy==\|^protobuf==' constraints.txt > .triton/constraints.txt
	@set -- .triton/bin/python -m pip install --quiet --disable-pip-version-check -c .triton/constraints.txt; \
	{ "$$@" --only-binary numpy -e '.[cpu]' 'numpy<2' 'tritonclient[grpc]' && "$$@" --no-deps nvidia-pytriton && touch $@; } || \
		echo "Triton could not be installed: what is tested with it is left out" >&2

test-clients: $(VENV)/.testing .clients/.installed
	$(BIN)/python -m pytest -m client

# What other programs that the tests start are made of, apart from the clients.
$(VENV)/.hosting: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[browser,ray,triton]'
	@touch $@

test-all: export BLOCKSTEP_FULL = 1
test-all: test test-clients $(VENV)/.hosting .triton/.installed
	$(BIN)/python -m pytest -m "browser or native or long"

smoke: $(VENV)/.hosting .clients/.installed .triton/.installed
	$(BIN)/python -m pytest -m smoke

reliability: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[reliability]'
	$(BIN)/python tests/reliability/report.py

# Branches of the runtime and the exporter that the suite runs; runtime/engines/trt/cuda.py, which needs a GPU, apart. Programs in C
# are left out: the interpreter inside them would start coverage too, which is not what they are counted and timed with.
coverage: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[reliability]'
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n logical --dist loadfile -m "not browser and not client" --ignore tests/test_c_hosts.py
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --omit "*/runtime/engines/trt/cuda.py" --skip-covered
	$(BIN)/coverage report --include "*/runtime/engines/trt/cuda.py"

# The runtime's parts alone: what `pip install '.[cpu]'` brings, without itself and pip.
bom: $(VENV)/.testing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[bom]'
	@rm -rf .bom; $(PYTHON) -m venv --without-pip .bom
	$(BIN)/python -m pip --python .bom/bin/python install --quiet --disable-pip-version-check -c constraints.txt '.[cpu]'
	@$(BIN)/python -m pip --python .bom/bin/python uninstall --quiet --yes blockstep
	$(BIN)/cyclonedx-py environment .bom/bin/python --pyproject pyproject.toml --short-PURLs --output-reproducible \
		--of JSON --output-file samples/results/bom.json
	.bom/bin/python samples/bench/parts.py --out samples/results/runtime_only.md

$(VENV)/.recipe: $(VENV)/.training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[pronounce]'
	@touch $@

train: $(VENV)/.recipe
	@PATH="$(abspath $(BIN)):$$PATH" samples/recipe.sh

train-smoke: $(VENV)/.recipe
	@rm -rf runs/smoke; PATH="$(abspath $(BIN)):$$PATH" SMOKE=1 RUNS=runs/smoke samples/recipe.sh

study: $(VENV)/.training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[study]'
	@PATH="$(abspath $(BIN)):$$PATH" STUDY=1 TASK=math,code samples/recipe.sh
	$(BIN)/python -m samples.study.methods_table runs/math-code --out samples/results

# llama.cpp takes some 20 minutes to build; what cannot be installed is said and left out.
bench: $(VENV)/.training
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[study]'
	CMAKE_ARGS="$(LLAMA_FLAGS)" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
		-c $(VENV)/constraints.txt -e '.[bench]' || echo "llama.cpp could not be built: the bench runs without it" >&2
	$(BIN)/python -m samples.bench

# An environment of its own: onnxruntime-gpu is the same module as onnxruntime, which the other extras bring. What cannot
# be installed is said and left out, here and on the page.
.gpu/.reporting: pyproject.toml constraints.txt
	$(MAKE) VENV=.gpu .gpu/.testing
	.gpu/bin/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check -c .gpu/constraints.txt -e '.[gpu]' || \
		{ echo "there is no onnxruntime-gpu for this machine: ONNX Runtime runs on the CPU alone, use TensorRT" >&2; \
		.gpu/bin/python -m pip install --quiet --disable-pip-version-check -c .gpu/constraints.txt -e '.[cpu]'; }
	@touch $@

ifdef NO_INSTALL
gpu-report:
	@$(PYTHON) -m samples.bench.gpu_report --no-install
else
gpu-report: .gpu/.reporting
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check -c .gpu/constraints.txt -e '.[$(FLAVOR)]' || \
		echo "$(FLAVOR) could not be installed: the report runs without TensorRT" >&2
	@.gpu/bin/python -m samples.bench.gpu_report
endif

clean:
	rm -rf $(VENV) .try .gpu .clients .triton build dist *.egg-info
