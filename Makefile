# What a person runs. Each target prints the commands it runs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BALLAST := $(TARGET_DIR)/release/ballast
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ballast
# The interpreter of bench/make-peft-env.sh's environment.
PEFT ?= $(CACHE)/peft-env/python
# A directory of golden files (losses, gradients, adapters of a PEFT run), for `make parity`.
GOLDEN ?= worker/tests/fixtures/peft-tiny
# A run directory whose adapter `make adapter-check` loads in peft.
RUN ?= runs/smollm2-gsm8k
# Another directory of libcuda, libcublasLt and libnccl for `make test-cuda`; ours is the software device.
SOFTGPU_LIB ?=
CUDA_LIB := $(abspath $(or $(SOFTGPU_LIB),$(TARGET_DIR)/softgpu/lib))

# A bundle of `make gpu-bundle` for `make test-gpu`, which else makes its own, and what test-gpu.sh is told (`--quick`, ...).
BUNDLE ?=
TEST_GPU ?=
OWN_BUNDLE := $(TARGET_DIR)/ballast-gpu.tar.xz

.PHONY: help demo cuda softgpu test test-cuda gpu-bundle test-gpu mutants traffic parity bench lint fmt adapter-check peft-env deploy-check advisories chaos network recovery scale simulate crash-points s3-server

help:
	@echo 'make demo           build, fetch SmolLM2-135M-Instruct, fine-tune it with LookAhead on two workers'
	@echo 'make test           the whole test suite (about 35 minutes on 2 cores), the CUDA backend emulated'
	@echo 'make cuda           compile the CUDA kernels and check what became of them (fetches the compiler, needs no GPU)'
	@echo 'make test-cuda      the CUDA backend on the software device (emulated), or on that of SOFTGPU_LIB=DIR'
	@echo 'make gpu-bundle     all that `make test-gpu` runs, for a machine with a GPU and no Rust: one archive under $(TARGET_DIR)'
	@echo 'make test-gpu       tests and throughput on a GPU: of that archive, or of BUNDLE=FILE (docs/cuda.md)'
	@echo 'make mutants        seeded faults in the CUDA backend, and which test catches each'
	@echo 'make traffic        global memory that each CUDA kernel moves, beside the least it could (emulated); with'
	@echo '                    LLMC_DIR=DIR also beside the kernels of llm.c'
	@echo 'make chaos          a run whose processes are killed, stopped and drained at random (SEED=N, at least FAULTS=M): its adapter'
	@echo '                    must be that of an undisturbed run, and its ledger prove every sample exactly once'
	@echo 'make network        runs whose network is cut, one-way or altogether, or loses, delays and duplicates (root, ip, VXLAN)'
	@echo 'make recovery       how soon training goes on after a worker is killed or hangs (KILLS=N, one JSON object a line), beside torchrun'
	@echo '                    (PEER_KILLS=N; make peft-env first); MODEL=smollm2 for a model whose steps take seconds'
	@echo 'make scale          what many workers take of the coordinator, and how long they wait for it: WORKERS=N simulated ones'
	@echo '                    (250, 1000 and 4000, with the growth), one JSON object a line'
	@echo 'make simulate       the membership alone, then coordinator and workers as they are, on simulated machines where everything goes'
	@echo '                    wrong: RUNS=N histories of each (20000; the second: CLUSTERS=N), from seed SEED=S (1); builds for some minutes'
	@echo 'make crash-points   crash a simulated disk after every operation of random histories, and start again on what is left:'
	@echo '                    RUNS=N crash points (10000), from seed SEED=S (1)'
	@echo 'make s3-server      a server that speaks S3, for the tests of remote stores: prints what BALLAST_TEST_S3 must be'
	@echo 'make lint           formatting, clippy, licences and sources of dependencies'
	@echo 'make fmt            format the Rust code'
	@echo 'make parity         training parity with PEFT: GOLDEN=DIR names the golden files'
	@echo 'make bench          speed and memory beside PEFT and tokenizers, one JSON object a line (make peft-env first);'
	@echo '                    QUICK=1 for one round of three steps in place of five of ten'
	@echo 'make adapter-check  load the adapter of RUN=DIR in peft and compare logits (make peft-env first)'
	@echo 'make peft-env       the environment with torch and peft that the last two need (about 3 GB)'
	@echo 'make deploy-check   container file and Kubernetes manifests against linter and schemas'
	@echo 'make advisories     known vulnerabilities of dependencies (fetches the RustSec database)'

demo:
	$(CARGO) build --release --locked -p ballast-cli
	scripts/fetch-demo-model.sh
	$(BALLAST) train examples/smollm2-gsm8k.toml

# The tests that start real processes take `ballast` from the same target directory, where this builds it first: a separate
# `cargo build` would resolve other features and compile every dependency twice. For the same reason everything is built
# with CUDA, once, where it can be.
#
# The CUDA path is executed in every test run, on the software device. Where its compiler cannot be had, the tests fail unless
# BALLAST_TEST_CUDA=skip says that this is known.
ifeq ($(BALLAST_TEST_CUDA),skip)
test:
	$(CARGO) test --locked --workspace --features ballast-cli/fault-points --no-run
	$(CARGO) test --locked --workspace --features ballast-cli/fault-points
	@echo 'skipped: the CUDA backend (BALLAST_TEST_CUDA=skip)'
else
test: cuda softgpu
	$(CUDA_TEST) --no-run
	@# All but what needs a device: tests/cuda*.rs, and two modules of the worker's.
	$(CUDA_TEST) $(NO_DEVICE) --lib --bins --test '[!c]*' --test 'c[!u]*' --test 'cu[!d]*' -- \
		--skip whole_model:: --skip cuda_memory::
	$(CUDA_TEST) --doc
	@$(MAKE) --no-print-directory test-cuda
	@# `ballast` as it ships by default, without CUDA.
	$(CARGO) test --locked --workspace --no-run --test cli
	$(CARGO) test --locked --workspace --test cli --test exactness --test losses
endif

# Exits with 69 where the compiler cannot be had.
cuda:
	kernels/cuda/build.py --out $(TARGET_DIR)/cuda

# The stand-ins for libcuda, libcublasLt and libnccl: tests only, never shipped.
softgpu: cuda
	SOFTGPU_BUILD='$(CUDA_FEATURES)' kernels/softgpu/install.sh $(TARGET_DIR)/softgpu/lib

# What passes here is emulated. The first two have no device, and so libraries to miss. Cargo puts its own directories in
# front of LD_LIBRARY_PATH, which may hold another libcuda.so: the runner has the last word. It also tells the tests where
# the processes that they start find the libraries, and whether those are ours: what needs our faults, counters or
# perturbations is skipped elsewhere.
# The whole workspace, though few of its tests run: for a part of it cargo would resolve other features of the dependencies
# and compile them once more.
CUDA_FEATURES := --workspace --features ballast-cli/cuda,ballast-cli/fault-points,ballast-e2e/cuda,ballast-kernels/reference
CUDA_TEST := $(CARGO) test --locked $(CUDA_FEATURES)
ON_DEVICE := --config 'target."cfg(all())".runner = ["env", "LD_LIBRARY_PATH=$(CUDA_LIB)", \
	"SOFTGPU_LIB=$(CUDA_LIB)", "BALLAST_TEST_DEVICE=$(if $(SOFTGPU_LIB),foreign,ours)"]'
# Chooses their perturbation: another for every commit.
export BALLAST_TEST_SEED ?= $(shell printf %d 0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 1))
TRAFFIC := LD_LIBRARY_PATH=$(CUDA_LIB) $(TARGET_DIR)/debug/examples/traffic
NO_DEVICE := --config 'target."cfg(all())".runner = ["env", "LD_LIBRARY_PATH="]'
test-cuda: cuda $(if $(SOFTGPU_LIB),,softgpu)
	$(CUDA_TEST) $(NO_DEVICE) --lib cuda::
	$(CUDA_TEST) $(NO_DEVICE) --test cuda_libraries
	$(CUDA_TEST) $(ON_DEVICE) --test cuda --test cuda_bits --test cuda_device --test cuda_nccl --test cuda_nccl_faults
	$(CUDA_TEST) $(ON_DEVICE) --test training -- whole_model:: cuda_memory::
	@# Builds `ballast` too, which cuda_cluster starts.
	$(CUDA_TEST) --no-run --test cli
	$(CUDA_TEST) $(ON_DEVICE) --test cuda_cluster
ifdef SOFTGPU_LIB
	@echo 'skipped: needs our device (what kernels move at small shapes)'
else
	$(CARGO) build --locked $(CUDA_FEATURES) --example traffic
	$(TRAFFIC) --small > $(TARGET_DIR)/traffic-small.jsonl
endif

# Real processes, built with the points at which they can be struck.
CHAOS_BUILD := $(CARGO) build --locked --workspace --features ballast-cli/fault-points
CHAOS_ENV := BALLAST_E2E_BINARY=$(abspath $(TARGET_DIR))/debug/ballast
SEED ?= 1
FAULTS ?= 200
PEER_KILLS ?= 20
chaos:
	$(CHAOS_BUILD) --bin ballast --bin chaos
	$(CHAOS_ENV) $(TARGET_DIR)/debug/chaos --seed $(SEED) --faults $(FAULTS)

# With `cli`, whose tests have `ballast` built.
NETWORK_TEST := $(CARGO) test --locked --workspace --features ballast-cli/fault-points --test network
network:
	$(NETWORK_TEST) --test cli --no-run
	$(NETWORK_TEST)

# With MODEL=smollm2 a step takes seconds, and there is no peer.
ifeq ($(MODEL),smollm2)
recovery:
	$(CHAOS_BUILD) --bin ballast --bin recovery
	scripts/fetch-demo-model.sh
	$(CHAOS_ENV) $(TARGET_DIR)/debug/recovery --model smollm2 --kills $(or $(KILLS),10) --stops 2
else
recovery:
	$(CHAOS_BUILD) --bin ballast --bin recovery --bin dump_samples
	$(CHAOS_ENV) bench/recovery/compare.py --recovery $(TARGET_DIR)/debug/recovery --dump-samples $(TARGET_DIR)/debug/dump_samples \
		--peft-python $(PEFT) --kills $(or $(KILLS),200) --peer-kills $(PEER_KILLS)
endif

# Alone WORKERS=N; without it a series, and how the figures grow. Only release builds say something.
scale:
	$(CARGO) build --release --locked -p ballast-cli -p ballast-e2e --bin ballast --bin scale
	BALLAST_E2E_BINARY=$(abspath $(BALLAST)) $(TARGET_DIR)/release/scale $(if $(WORKERS),--workers $(WORKERS))

gpu-bundle: cuda
	bench/gpu/bundle.py --cargo $(CARGO) --out $(TARGET_DIR)

$(OWN_BUNDLE):
	$(MAKE) gpu-bundle

# test-gpu.sh exits with 69 where there is no usable GPU; make says so (`Error 69`) and exits with 2.
test-gpu: $(or $(BUNDLE),$(OWN_BUNDLE))
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	python3 -m tarfile -e $< "$$scratch"; "$$scratch/ballast-gpu/test-gpu.sh" $(TEST_GPU)

# Seeded faults in kernels and host code, which those tests must catch: emulated as they are.
mutants: cuda softgpu
	kernels/cuda/mutants/run.py --cargo $(CARGO) --packages='$(CUDA_FEATURES)' --lib $(CUDA_LIB) --target $(TARGET_DIR)

# Global memory that each kernel moves, beside the least it could: emulated, but exact. Its output is the JSON lines alone.
# With LLMC_DIR, also operations that llm.c has, side by side.
traffic:
	@$(MAKE) cuda softgpu >&2
	@$(CARGO) build --locked $(CUDA_FEATURES) --example traffic
	@$(TRAFFIC)
ifdef LLMC_DIR
	@kernels/examples/traffic/llmc/compile.py --llmc $(LLMC_DIR) --out $(TARGET_DIR)/llmc.ptx >&2
	@$(TRAFFIC) --llmc $(TARGET_DIR)/llmc.ptx
else
	@echo 'traffic: not compared with llm.c: LLMC_DIR does not name a checkout of it' >&2
endif

# Two JSON lines: the membership alone, and whole clusters; without a violation it ends with 0. The same seed makes the same histories.
SIMULATED := BALLAST_SIMULATION_SEED=$(SEED) $(CARGO) test --locked --quiet --profile simulation
simulate:
	@BALLAST_SIMULATED_RUNS=$(or $(RUNS),20000) $(SIMULATED) -p ballast-coordinator --lib simulation -- --nocapture | grep '^{'
	@BALLAST_SIMULATED_CLUSTERS=$(or $(CLUSTERS),$(RUNS),20000) $(SIMULATED) -p ballast-e2e --test simulation clusters -- --nocapture | grep '^{'

# As above: the same seed makes the same crashes.
crash-points:
	@BALLAST_CRASH_POINTS=$(or $(RUNS),10000) BALLAST_CRASH_SEED=$(SEED) $(CARGO) test --locked --quiet -p ballast-coordinator --lib \
		crash_points -- --nocapture | grep -v -e '^running ' -e '^test result: ok' -e '^\.*$$'

s3-server:
	@scripts/make-s3-server.sh

parity:
	$(CARGO) run --release --locked -p ballast-e2e --bin parity -- $(GOLDEN) $(if $(DTYPE),--dtype $(DTYPE))

bench:
	$(CARGO) build --release --locked -p ballast-cli -p ballast-e2e
	scripts/fetch-demo-model.sh
	bench/run.py --ballast $(BALLAST) --tools $(TARGET_DIR)/release --peft-python $(PEFT) $(if $(QUICK),--rounds 1 --steps 3)

adapter-check:
	$(CARGO) build --release --locked -p ballast-e2e
	scripts/fetch-demo-model.sh
	$(PEFT) scripts/check_adapter_in_peft.py --dump-logits $(TARGET_DIR)/release/dump_logits $(RUN)/adapter

peft-env:
	bench/make-peft-env.sh

# The CUDA backend embeds the compiled kernels, so it can be linted where they are (`make cuda`).
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
ifneq ($(BALLAST_TEST_CUDA),skip)
	$(MAKE) --no-print-directory cuda
	$(CARGO) clippy --locked $(CUDA_FEATURES) --all-targets -- -D warnings
endif
	$(CARGO) deny --locked --offline check bans licenses sources

fmt:
	$(CARGO) fmt --all

deploy-check:
	deploy/check.sh

advisories:
	$(CARGO) deny --locked check advisories
