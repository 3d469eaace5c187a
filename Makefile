# Every target does the set-up it needs (tools/setup.sh) and is quick when nothing changed.
# ARGS passes arguments on:  make test ARGS="-k 'wire or encode' -x"   make demo ARGS="--images 64"
# (a sub-make receives it through MAKEFLAGS, with its quotes)

PY := .venv/bin/python
ARGS ?=
SECONDS ?= 60
SUITE ?= bookworm
RESULTS := bench-results
IN_REACH := @tools/in-reach.sh $(MAKE) --no-print-directory

# AIFLOW_RETRY=1, as in CI: the failed tests run once more in a process of their own.
once_more = $(if $(AIFLOW_RETRY),|| { echo "aiflow: failed tests run once more"; $(PY) -m pytest --last-failed $(1); })

# ON_PORTS: the tests that another DPDK can change. Those in OF_PYTHON depend on Python and the kernel only.
OF_PYTHON := $(addprefix tests/faults/test_, \
	dtypes.py forked.py interrupts.py iteration.py names.py objects.py reentrance.py registry.py)
ON_PORTS := tests/cli $(addprefix tests/project/test_,install.py readme.py) tests/unit/test_memif_proxy.py \
	tests/network/test_af_packet.py $(addprefix tests/ports/test_, \
	between_processes.py departures.py eal.py hugepages.py keep_mbufs.py portset.py rendezvous.py roundtrip.py \
	shim.py) \
	$(filter-out $(OF_PYTHON), $(wildcard tests/faults/test_*.py))

.PHONY: help demo test test-ports bench soak lab fuzz lint sanitize setup fresh clean
.PHONY: docs docs-pictures newcomer verdicts nic-test nic-soak nic-boot sdist-test wheel wheel-test wheel-bench
.PHONY: demo-here test-here test-ports-here bench-here soak-here sanitize-here nic-test-here nic-soak-here \
	nic-boot-here
.PHONY: wheel-in-bookworm wheel-in-trixie

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## one time slice of 512 photographs, process to process; writes demo-report.png
	$(IN_REACH) demo-here

test: ## all tests; as root those with network namespaces too
	$(IN_REACH) test-here

test-ports: ## the tests of ports, faults, commands and README: what another DPDK may change
	$(IN_REACH) test-ports-here

bench: ## beside what else Python users have, C testpmd and memcpy; writes bench-results/
	$(IN_REACH) bench-here

soak: ## the long runs
	$(IN_REACH) soak-here

verdicts: ## as root: aiflow diagnose on forty runs with a known bottleneck, twice; twelve minutes
	@tools/setup.sh dev
	$(PY) -m pytest -m soak --timeout=0 -s tests/soak/test_verdicts.py $(ARGS)

lab: ## the published experiments on an emulated cluster (root); writes lab-results/
	@tools/setup.sh dev
	.venv/bin/aiflow lab run all $(ARGS)

fuzz: ## the parser and both state machines under libFuzzer, SECONDS=60 each; ARGS="receiver" for one of them
	@tools/setup.sh dev
	@tools/fuzz.sh $(SECONDS) $(ARGS)

sanitize: ## the unit tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(IN_REACH) sanitize-here

lint: ## what tools/lint.sh lists: formats, types, spelling, limits; ARGS="ruff mypy" for some of it
	@tools/setup.sh dev
	tools/lint.sh $(ARGS)

docs: ## the documentation site, in build/docs/html; warnings and dead links are errors
	@tools/setup.sh docs
	@tools/docs.sh

docs-pictures: docs ## screenshots of the site by a headless Chromium, in build/docs/screenshots
	@tools/setup.sh pictures
	$(PY) tools/screenshots.py $(ARGS)

nic-test: ## pci: on Intel igb ports that QEMU emulates, on a Debian 13 (root); ARGS go to pytest
	@tools/nic.sh test $(ARGS)

nic-soak: ## the same machine: a million frames while its links come and go
	@tools/nic.sh soak $(ARGS)

nic-boot: ## start that machine ten times, and run nothing in it; ARGS=3 for another number
	@tools/nic.sh boot $(ARGS)

setup: ## set-up only
	@tools/setup.sh dev

fresh: ## make demo and make test on a Debian made by debootstrap (root); SUITE=bookworm, trixie or sid
	@tools/fresh.sh $(SUITE)

wheel: ## a wheel with DPDK inside, in build/wheel/dist
	@tools/setup.sh dev
	@tools/wheel.sh

wheel-test: wheel ## the wheel beside the system's DPDK, and on a clean Debian 12 and 13 made by debootstrap (root)
	AIFLOW_WHEEL=required $(PY) -m pytest tests/project/test_wheel.py \
		$(if $(AIFLOW_RETRY),|| AIFLOW_WHEEL=required $(PY) -m pytest --last-failed tests/project/test_wheel.py)
	@$(MAKE) --no-print-directory -j2 --output-sync=target wheel-in-bookworm wheel-in-trixie

newcomer: ## every command of README, tutorial and how-tos, pasted in a fresh clone (root for all of them)
	@tools/setup.sh dev
	$(PY) tools/newcomer.py $(ARGS)

sdist-test: ## the source distribution installed by pip on a Debian made by debootstrap (root); SUITE as for fresh
	@tools/sdist-test.sh $(SUITE)

wheel-bench: ## the wheel's throughput over that of this tree, in pairs
	@bench/wheel-pairs.sh $(ARGS)

clean: ## remove what was built, and the virtual environment
	rm -rf build .venv *.egg-info
	find aiflow -name '*.so' -delete

wheel-in-bookworm wheel-in-trixie: wheel-in-%:
	@tools/wheel-test.sh $*

demo-here:
	@tools/setup.sh demo
	@tools/as-user.sh .venv/bin/aiflow demo $(ARGS)
	@tools/where.sh $(ARGS)

test-here:
	@tools/setup.sh dev
	$(PY) -m pytest -m "not soak" $(ARGS) $(call once_more,-m "not soak")

test-ports-here:
	@tools/setup.sh ports
	$(PY) -m pytest -m "not soak and not slow" $(ON_PORTS) $(ARGS) \
		$(call once_more,-m "not soak and not slow" $(ON_PORTS))

bench-here:
	@tools/setup.sh bench
	@mkdir -p $(RESULTS)
	$(PY) -m pytest bench --benchmark-enable -o timeout=600 --benchmark-json=$(RESULTS)/bench.json $(ARGS)
	$(PY) bench/tables.py $(RESULTS)/bench.json >$(RESULTS)/bench.md
	$(PY) bench/pictures.py $(RESULTS)/bench.json $(RESULTS)/bench.png
	$(if $(ARGS),,$(PY) bench/scaling.py --out $(RESULTS))
	$(if $(ARGS),,$(PY) bench/one_host.py --out $(RESULTS))

soak-here:
	@tools/setup.sh dev
	$(PY) -m pytest -m soak --timeout=0 $(ARGS)

sanitize-here:
	@tools/setup.sh dev
	@tools/sanitize.sh $(ARGS)

nic-test-here nic-soak-here nic-boot-here:
	@tools/setup.sh nic
	@tools/nic/run.sh $(patsubst nic-%-here,%,$@) $(ARGS)
