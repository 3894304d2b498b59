# The only command surface. Every target installs first if it must; .ci/run calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSOLE := server/api/http/console/vendor
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
KERNELS := $(wildcard server/engine/native/kernels/*.cpp server/engine/native/kernels/*.h)

.PHONY: install install-vllm demo serve test test-fast test-slow test-torch test-vllm chaos check fmt protos console bench soak gpu clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,postgres,quantization,ray,s3,tracing,training,dev]'
	touch $@

# vLLM holds to older packages than the rest, so it has an environment of its own, for a machine without a GPU.
install-vllm: $(VLLM_INSTALLED)

$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt $(KERNELS)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# SAMPLE=file.jsonl takes other dialogues than the shipped ones, NUM=50 how many, SPLIT=validation which.
demo: install
	$(BIN)/medley demo $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(NUM),--num $(NUM)) $(if $(SPLIT),--split $(SPLIT))

# ARGS="--port 9000 --dtype float32" passes options on.
serve: install
	$(BIN)/medley serve $(ARGS)

test: test-fast test-slow test-torch

# The part to run after every change: nothing that imports torch or takes more than a few seconds.
test-fast: install
	$(BIN)/python -m pytest -q --numprocesses auto -m "not slow and not torch and not gpu and not vllm"

# Whole servers: killed, flooded, in pairs, called with whatever comes to mind. They wait more than they compute.
test-slow: install
	$(BIN)/python -m pytest -q --numprocesses $$(( $$(nproc) * 3 / 2 )) -m "slow and not torch and not gpu and not vllm"

# Faults: kills, a full disk, a store gone silent, a clock that jumps. Ends with a table of what each did.
chaos: install
	$(BIN)/python -m pytest -q -m chaos

test-torch: install
	$(BIN)/python -m pytest -q -m "torch and not gpu and not vllm"

# The vLLM engine on vLLM itself; gigabytes of cache are vLLM's default, one is plenty for the tests' models.
test-vllm: install-vllm
	VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/vllm tests/contract/test_engine_contract.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint Dockerfile
	$(BIN)/oxlint --deny-warnings server/api/http/console

fmt: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(KERNELS)

# Generates protos/gen from protos/medley.
protos: install
	$(BIN)/python protos/generate.py

# Brings the console's libraries at the versions of its package-lock.json; they are committed, so npm is needed for another version only.
console:
	npm ci --ignore-scripts --prefix $(CONSOLE)
	node $(CONSOLE)/bring.mjs

# The engine beside its peers, in turn, in one run; ARGS="--quick" takes minutes, ARGS="--json FILE" keeps the figures.
bench: install
	$(BIN)/python -m benchmarks engine $(ARGS)

# Half an hour of mixed traffic and changing adapters on a server of its own; ARGS="--duration 300" is shorter.
soak: install
	$(BIN)/python -m loadtest.soak $(ARGS)

# On a GPU box with torch, transformers, peft and triton of its own: no environment is made, so that its CUDA build is used.
gpu:
	$(PYTHON) -m pytest -q -p no:cacheprovider -c tests/gpu/pytest.ini --rootdir . -m gpu tests/gpu
	$(PYTHON) -m benchmarks.gpu $(ARGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV)
