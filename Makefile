# make train   sets everything up and trains a swarm on real text
# make test    sets everything up and passes the tests
# make setup   only sets everything up, in .venv
# make chaos   faults: random ones on virtual time (SEEDS=0:500), then to real processes
# make soak    trains for 5 minutes while peers are killed every 5 s (SEED=1)
# make fuzz    feeds damaged bytes to all that parses the network (CASES=N per target)
#
# DEVICE=cuda13     jax for NVIDIA cards (also: cuda12, tpu); default: cpu
# CONFIG=FILE       what to train;  WORKDIR=FOLDER  where to;  ARGS="..."  more options
# PYTHON=python3.12 which Python; default: the first one that fits
# TORCH_INDEX=https://download.pytorch.org/whl/cpu   spares you gigabytes of CUDA (README)

FITS = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c "$(FITS)" 2>/dev/null && echo $$python && break; done)
DEVICE ?= cpu
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/tiny
ARGS ?=
SEEDS ?= 0:500
SEED ?= 1
CASES ?= 300000
TORCH_INDEX ?=

RUN = .venv/bin/python
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check
# Tests run side by side, one thread each, and never on a card.
PYTEST = PJRT_NPROC=1 OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu $(RUN) -m pytest -n auto -q

.PHONY: setup train test chaos soak fuzz

setup: .venv/.installed-$(DEVICE)

# torch first: with it installed, hivemind's own requirement pulls no other build.
.venv/.installed-%: requirements.txt
	@test "$$(uname -sm)" = "Linux x86_64" || { \
		echo "This is $$(uname -sm). swarm_jax runs on Linux x86_64, where hivemind has a"; \
		echo "wheel; on Windows inside WSL."; exit 1; }
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(FITS)" 2>/dev/null || { \
		echo "Python 3.11, 3.12 or 3.13 is needed; '$(or $(PYTHON),python3)' is not one."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) -r requirements.txt
	@if [ "$*" != cpu ]; then $(PIP) "jax[$*]==0.10.2"; fi
	@touch $@

train: setup
	$(RUN) -m scripts.launch --config $(CONFIG) --workdir $(WORKDIR) --device $(DEVICE) $(ARGS)

# float64 is a switch of the whole process, so those tests have their own.
test: setup
	$(PYTEST) -m "not soak and not chaos" --ignore=tests/float64
	$(PYTEST) tests/float64

chaos: setup
	$(RUN) -m scripts.chaos --seeds $(SEEDS)
	$(PYTEST) -m chaos tests/integration tests/sim

soak: setup
	$(RUN) -m scripts.launch --config $(CONFIG) --workdir runs/soak --overwrite \
		--device $(DEVICE) --peers-per-stage 3 --duration 300 --kill-every 5 \
		--seed $(SEED) $(ARGS)

fuzz: setup
	$(PIP) -r requirements-fuzz.txt
	JAX_PLATFORMS=cpu $(RUN) -m scripts.fuzz --cases $(CASES) $(ARGS)
