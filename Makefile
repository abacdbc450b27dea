# make demo | make test | make test-fast | make setup; each sets itself up first. PYTHON picks the interpreter (>= 3.10).
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
# Threads that wait for each other should sleep, not spin: three times faster on a machine that does other things too.
export OMP_WAIT_POLICY ?= passive
READY  := $(VENV)/.ready

.PHONY: help setup test test-fast demo figures lint soak gpu clean

help:
	@echo "make setup   create $(VENV) with everything needed (no compiler)"
	@echo "make demo    source model -> estimator -> fine-tuning -> evaluation -> figures, in output/demo"
	@echo "make test    the test suite: minutes"
	@echo "make test-fast  the mathematics, and all else that needs no training run: about a minute on two cores"
	@echo "make soak    kills, hostile inputs and several processes at length: about four minutes on two cores"
	@echo "make gpu     on an NVIDIA GPU: its tests and its benchmarks, against Hugging Face's Mask2Former; minutes"
	@echo "make figures the figures of README and docs, from a finished make demo"
	@echo "make lint    ruff and mypy"

setup: $(READY)

$(READY): setup.py requirements/detectron2.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tmt_d2 needs Python >= 3.10, $(PYTHON) is %d.%d; try: make setup PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check torch torchvision
	$(RUN) -m pip install -q --disable-pip-version-check -e '.[dev,cpu]'
	cd / && $(abspath $(RUN)) -c 'import detectron2' 2>/dev/null || $(abspath $(RUN)) -m pip install -q --disable-pip-version-check \
		--no-deps --only-binary=:all: --python-version 3.10 --require-hashes -r $(abspath requirements/detectron2.txt) \
		--target "$$($(abspath $(RUN)) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not slow"

# What holds on any processor: PyTorch's kernels without AVX-512, and without any vector instructions.
SAME_EVERYWHERE := tests/modeling/test_criterion.py tests/modeling/test_masked_attention.py tests/transferability/test_clustering.py tests/modeling/test_reference_outputs.py tests/engine/test_step.py

soak: $(READY)
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(RUN) -m pytest -q $(SAME_EVERYWHERE)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(RUN) -m pytest -q $(SAME_EVERYWHERE)
	for file in tests/soak/soak_*.py; do OMP_NUM_THREADS=1 $(RUN) -m pytest -q -s $$file || exit 1; done

gpu: $(READY)
	@$(RUN) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: PyTorch %s finds no NVIDIA GPU" % torch.__version__)'
	$(RUN) -m pip install -q --disable-pip-version-check -e '.[dev,gpu]'
	$(RUN) -m pytest -q -rs tests/engine/test_gpu.py
	mkdir -p output/gpu
	$(RUN) -m benchmarks.parts --device cuda --sizes 512x1024 1024x2048 --output output/gpu/parts.json
	$(RUN) -m benchmarks.model --device cuda --rounds 10 --sizes 512x1024 1024x2048 --step-sizes 512x1024 --output output/gpu/model.json

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

demo: $(READY)
	$(RUN) -m demo.run --output output/demo

figures: $(READY)
	$(RUN) -m demo.figures

clean:
	rm -rf output build dist *.egg-info
