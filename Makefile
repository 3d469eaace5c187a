# Every target does the set-up it needs (tools/setup.sh) and is quick when nothing changed.
# ARGS passes arguments on:  make test ARGS="-k 'wire or encode' -x"   make demo ARGS="--images 64"
# (a sub-make has it through MAKEFLAGS, quotes and all)

PY := .venv/bin/python
ARGS ?=
SECONDS ?= 60
RESULTS := bench-results
IN_REACH := @tools/in-reach.sh $(MAKE) --no-print-directory

.PHONY: help demo test bench soak lab fuzz lint sanitize setup fresh clean demo-here test-here bench-here soak-here sanitize-here

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## one time slice of 512 photographs, process to process; writes demo-report.png
	$(IN_REACH) demo-here

test: ## all tests; as root those with network namespaces too
	$(IN_REACH) test-here

bench: ## beside what else Python users have, C testpmd and memcpy; writes bench-results/
	$(IN_REACH) bench-here

soak: ## the long runs
	$(IN_REACH) soak-here

lab: ## the published experiments on an emulated cluster (root); writes lab-results/
	@tools/setup.sh dev
	.venv/bin/aiflow lab run all $(ARGS)

fuzz: ## the parser and both state machines under libFuzzer, SECONDS=60 each; ARGS="receiver" for one of them
	@tools/setup.sh dev
	@tools/fuzz.sh $(SECONDS) $(ARGS)

sanitize: ## the unit tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(IN_REACH) sanitize-here

lint: ## ruff, mypy, cython-lint
	@tools/setup.sh dev
	$(PY) -m ruff check .
	$(PY) -m mypy
	PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint aiflow

setup: ## set-up only
	@tools/setup.sh dev

fresh: ## make demo and make test on a Debian 12 made by debootstrap (root)
	@tools/fresh.sh

clean: ## remove what was built, and the virtual environment
	rm -rf build .venv *.egg-info
	find aiflow -name '*.so' -delete

demo-here:
	@tools/setup.sh demo
	@tools/as-user.sh .venv/bin/aiflow demo $(ARGS)

test-here:
	@tools/setup.sh dev
	$(PY) -m pytest -m "not soak" $(ARGS)

bench-here:
	@tools/setup.sh bench
	@mkdir -p $(RESULTS)
	$(PY) -m pytest bench --benchmark-enable -o timeout=600 --benchmark-json=$(RESULTS)/bench.json $(ARGS)
	$(PY) bench/tables.py $(RESULTS)/bench.json >$(RESULTS)/bench.md
	$(PY) bench/plots.py $(RESULTS)/bench.json $(RESULTS)/bench.png
	$(if $(ARGS),,$(PY) bench/scaling.py --out $(RESULTS))

soak-here:
	@tools/setup.sh dev
	$(PY) -m pytest -m soak --timeout=0 $(ARGS)

sanitize-here:
	@tools/setup.sh dev
	@tools/sanitize.sh $(ARGS)
