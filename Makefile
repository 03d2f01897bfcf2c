# Each target installs its requirements into $(VENV); a second call skips finished steps.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# The environment of test-fake-gpu, and its torch: a CUDA build.
VENV_CUDA ?= .venv-cuda
TORCH_CUDA ?= torch==2.14.1
PYTEST_ARGS ?=
# Processes of the test suite; each computes on one thread.
JOBS ?= auto
STEPS ?= 300
RECORD ?=
# The oldest glibc of the wheel, and the Pythons of test-wheel-versions, each with a torch.
GLIBC ?= 2.28
WHEEL_ENVIRONMENTS ?= 3.10=torch==2.10.0 3.12=torch==2.10.0 3.13=torch
RELEASED := KRADAGRAD_BUILD=$${KRADAGRAD_BUILD:-cuda}
# The oldest supported Triton, in the second environment; its interpreter needs an older NumPy.
OLDEST_TRITON := triton==3.3.0 numpy<2.3
# The Triton of common GPU images. test-triton-budgets compiles with it for the architectures where `auto` selects Triton's kernels.
OTHER_TRITON ?= triton==3.6.0
OTHER_TRITON_FOR ?= sm_90 or sm_100
# Tests of the ops also run on Triton's interpreter: one thread a process, for NumPy's products as well.
INTERPRETED := TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1
ELEMENTWISE := $(addprefix tests/test_,update_moments.py apply_updates.py)
ON_FACTORS := tests/test_square_root_step.py

# Cache of compiled files and of Triton's results, shared between clones; empty: no cache.
export KRADAGRAD_CACHE ?= $(HOME)/.cache/kradagrad_ext
# Tests whose outcome depends on the presence of the native library.
WITHOUT_LIBRARY := $(addprefix tests/test_,env_report.py packaging.py registry.py optimizer.py checkpoint.py \
    packed.py capturable.py opcheck.py train_gpt.py)

BIN := $(VENV)/bin
NATIVE := setup.py build_backend.py build_native.py ninja_rules.py compile_cached.py pyproject.toml $(shell find csrc -type f)
PACKAGE := $(shell find kradagrad_ext triton_kernels -name '*.py' -o -name '*.csv')

.PHONY: demo test test-slow test-none test-triton test-triton-budgets test-torch-versions test-fake-gpu wheel test-wheel-versions lint docs bench gpu-bundle clean
.DELETE_ON_ERROR:

# Each optimizer at its tuned learning rate, which is the example's default. Runs that Ctrl-C stopped go on; after a
# complete demo, both train anew.
demo: $(VENV)/demo
	test ! -e runs/demo/comparison.png || rm -r runs/demo
	$(BIN)/python examples/train_gpt.py --optimizer adamw --steps $(STEPS) --out runs/demo/adamw --resume-if-any
	$(BIN)/python examples/train_gpt.py --optimizer kradagrad --steps $(STEPS) --out runs/demo/kradagrad --resume-if-any
	$(BIN)/python examples/compare_runs.py runs/demo/adamw runs/demo/kradagrad --out runs/demo

test: $(VENV)/installed
	$(BIN)/pytest -n $(JOBS) -m "not slow" $(PYTEST_ARGS)

# The tests that `test` leaves out: sweeps of faults, budgets of machine code for every architecture, long runs.
test-slow: $(VENV)/installed
	$(BIN)/pytest -n $(JOBS) -m slow $(PYTEST_ARGS)

# A regular installation of the pure-Python package: its contents, and the code that selects a backend.
test-none: $(VENV)-none/installed
	$(VENV)-none/bin/pytest -n $(JOBS) -m "not slow" $(PYTEST_ARGS) $(WITHOUT_LIBRARY)

# The Triton kernels on Triton's interpreter: the ops on the newest Triton, and the parts that depend on the interpreter on the oldest.
test-triton: $(VENV)/installed $(VENV)-none/installed
	$(INTERPRETED) $(BIN)/pytest -n $(JOBS) -k "triton and not threads" $(PYTEST_ARGS) $(ELEMENTWISE) \
	    tests/test_trajectory.py
	$(INTERPRETED) $(BIN)/pytest -n $(JOBS) -k "triton and (half or direction or several) and not thousands" \
	    $(PYTEST_ARGS) $(ON_FACTORS)
	$(INTERPRETED) $(VENV)-none/bin/pytest -n $(JOBS) -W ignore::DeprecationWarning \
	    -k "triton and dtype2" $(PYTEST_ARGS) $(ELEMENTWISE)

# The budgets of the default precision's kernels with another Triton; test-slow checks them with the newest.
test-triton-budgets: $(VENV)-$(subst ==,-,$(OTHER_TRITON))/installed
	PYTHONPATH=$(abspath $(<D)) $(BIN)/pytest -n $(JOBS) -k "specialisation and bf16x3 and ($(OTHER_TRITON_FOR))" \
	    $(PYTEST_ARGS) tests/bench/test_triton_budgets.py

# The native library with the oldest torch, the newest and some between, in environments of many GB.
test-torch-versions:
	$(PYTHON) tests/torch_versions.py $(TORCH_VERSIONS_ARGS)

# The host code of steps on GPUs, under a CUDA build of torch and the fake runtime of tests/fake_cuda.
test-fake-gpu: $(VENV_CUDA)/bin/pytest
	PYTHONPATH=tests $(VENV_CUDA)/bin/python -m fake_cuda --devices 2 pytest $(PYTEST_ARGS) tests/fake_cuda

$(VENV_CUDA)/bin/pytest:
	$(PYTHON) -m venv $(VENV_CUDA)
	$(VENV_CUDA)/bin/pip install $(TORCH_CUDA) triton numpy ninja 'setuptools>=77' pytest pytest-benchmark

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

# The site of docs/, README.md and the docstrings, in build/site; every warning is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The sdist and the wheel with its CUDA kernels in dist/, and the wheel as a kernel of Hugging Face's hub in
# build/hub-kernel: built, checked, and installed into fresh environments (docs/releasing.md). Needs nvcc;
# KRADAGRAD_BUILD=cpu does without.
wheel: $(VENV)/release
	$(RELEASED) KRADAGRAD_GLIBC=$(GLIBC) $(BIN)/python tools/release/distributions.py dist
	$(BIN)/python tools/release/hub_kernel.py dist build/hub-kernel
	$(RELEASED) $(BIN)/python tools/release/installs.py dist build/hub-kernel --torch '$(TORCH)'

# Steps with that wheel on other Pythons and releases of torch, in environments of many GB.
test-wheel-versions:
	for environment in $(foreach one,$(WHEEL_ENVIRONMENTS),'$(one)'); do \
	    $(PYTHON) tools/release/installs.py dist build/hub-kernel --no-sdist \
	        --python "$${environment%%=*}" --torch "$${environment#*=}" || exit 1; done

# Results go to build/bench, or with RECORD=--record to bench/results and docs/images, which git tracks.
bench: $(VENV)/bench
	$(BIN)/pytest bench/ops --benchmark-only $(RECORD) $(PYTEST_ARGS)
	$(BIN)/python -m bench.steps.step $(RECORD)
	$(BIN)/python -m bench.plot $(RECORD)

# The native library for one architecture, to copy to a machine with a GPU (docs/gpu-check.md).
gpu-bundle: $(VENV)/installed
	$(BIN)/python -m bench.gpu.check.package .gpu-bundle

clean:
	rm -rf build dist .gpu-bundle kradagrad_ext.egg-info $(VENV) $(VENV)-none $(VENV)-triton-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f kradagrad_ext/_native.abi3.so kradagrad_ext/_build.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Later installations into an environment, and isolated builds, keep its torch.
INSTALL = PIP_CONSTRAINT=$(abspath $(@D))/constraints.txt $(@D)/bin/pip install

%/constraints.txt:
	$(PYTHON) -m venv $*
	$*/bin/pip install $(TORCH)
	$*/bin/pip freeze | grep '^torch==' > $@
	for constraint in $(foreach one,$(CONSTRAINTS),'$(one)'); do echo "$$constraint" >> $@; done

$(VENV)-none/constraints.txt: CONSTRAINTS = $(OLDEST_TRITON)

# Only the requirements of the examples; -v shows the progress of the build.
$(VENV)/demo: $(VENV)/constraints.txt $(NATIVE)
	$(INSTALL) -v -e '.[examples]'
	touch $@

$(VENV)/installed: $(VENV)/demo
	$(INSTALL) -e '.[test]'
	touch $@

$(VENV)/lint: $(VENV)/installed
	$(INSTALL) -e '.[lint]'
	touch $@

$(VENV)/release: $(VENV)/demo
	$(INSTALL) -e '.[release]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(INSTALL) -e '.[docs]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	$(INSTALL) -e '.[bench]'
	touch $@

# Only another Triton; all other packages are those of the first environment.
$(VENV)-triton-%/installed: $(VENV)/installed
	rm -rf $(@D)
	$(BIN)/pip install --no-deps --target $(@D) 'triton==$*'
	touch $@

$(VENV)-none/installed: $(VENV)-none/constraints.txt $(NATIVE) $(PACKAGE)
	rm -rf build/lib
	KRADAGRAD_BUILD=none $(INSTALL) '.[suite]'
	touch $@
