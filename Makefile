# make demo    which of three methods helps a Chinese word segmenter, measured here within minutes (DEMO_ARGS="--out demo")
# make test    all tests but the slow ones                                                        (TEST_ARGS="-m slow")
# make lint    ruff and mypy; make format rewrites what ruff can mend by itself
# make clean   remove .venv and what the tools leave
#
# Each makes its own .venv, installs once through constraints.txt and starts at once the next time. PYTHON=... chooses the
# Python (3.11 or newer), PIP_ARGS=... is passed to pip.
# Only relative paths stand here, so a checkout below a folder with blanks in its name works too.

SHELL = /bin/sh
BIN = .venv/bin
CANDIDATES = python3.11 python3.12 python3.13 python3.14 python3 python

.PHONY: demo test lint format clean venv installed-demo installed-test
.NOTPARALLEL:

demo: installed-demo
	@$(BIN)/python -m danlu demo $(DEMO_ARGS)

test: installed-test
	@$(BIN)/python -m pytest $(TEST_ARGS)

lint: installed-test
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

format: installed-test
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests $(wildcard benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/folder holds the place it was made for; a moved or broken one, or one of a Python since removed, is made anew.
venv:
	@set -eu; \
	usable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if [ "$$(cat .venv/folder 2>/dev/null)" = "$$(pwd -P)" ] && usable $(BIN)/python; then exit 0; fi; \
	found=; seen=; bare=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	  if usable "$$candidate"; then \
	    if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found=$$candidate; break; fi; \
	    bare="$$bare $$candidate"; \
	  else \
	    version=$$("$$candidate" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || true); \
	    seen="$$seen $$candidate ($${version:-not found})"; \
	  fi; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	  echo "danlu:$$bare has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; \
	elif [ -z "$$found" ]; then \
	  echo "danlu needs Python 3.11 or newer; tried$$seen. Name one: make test PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	echo "making .venv with $$("$$found" --version)"; \
	rm -rf .venv; \
	"$$found" -m venv .venv; \
	pwd -P > .venv/folder

# .venv/installed: the checksum of what decides the installation, then the extras installed under it. `test` contains `demo`.
installed-demo installed-test: venv
	@set -eu; \
	extra=$(@:installed-%=%); \
	key=$$(cat pyproject.toml constraints.txt | cksum); \
	if [ "$$(head -n 1 .venv/installed 2>/dev/null)" != "$$key" ]; then rm -f .venv/installed; fi; \
	if grep -qx "$$extra" .venv/installed 2>/dev/null; then exit 0; fi; \
	echo "installing danlu[$$extra] into .venv (once; some minutes, mostly PyTorch)"; \
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[$$extra]"; \
	if [ ! -f .venv/installed ]; then echo "$$key" > .venv/installed; fi; \
	if [ "$$extra" = test ]; then echo demo >> .venv/installed; fi; \
	echo "$$extra" >> .venv/installed
