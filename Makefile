# make train   sets everything up and trains a swarm on real text
# make test    sets everything up and passes the tests
PYTHON ?= python3
DEVICE ?= cpu
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/tiny
RUN = .venv/bin/python

.PHONY: setup train test

setup: .venv/.installed-$(DEVICE)

# torch first: with it installed, hivemind's own requirement pulls no CUDA build.
.venv/.installed-%: requirements.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@if [ "$*" != cpu ]; then $(RUN) -m pip install --quiet --disable-pip-version-check "jax[$*]==0.10.2"; fi
	@touch $@

train: setup
	$(RUN) -m scripts.launch --config $(CONFIG) --workdir $(WORKDIR)

test: setup
	$(RUN) -m pytest -n auto -q
