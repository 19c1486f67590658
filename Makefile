# `make demo` and `make test` do the whole set-up on a fresh machine. PYTHON names the interpreter to start from.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test docs install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: this takes a few minutes, most of them for torch"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# Pre-train on the built-in data set, then evaluate the encoder with kNN and a linear classifier. A run that Ctrl-C has
# stopped is resumed. If it had other settings, which the list doesn't say, a new one is trained.
UNFINISHED := $(BIN)/simclr runs --kind pretrain | grep -q '^shapes-s0 .* \(stopped\|running\) '

demo: install
	@if $(UNFINISHED); then $(BIN)/simclr pretrain --preset shapes --resume || $(BIN)/simclr pretrain --preset shapes; \
	else $(BIN)/simclr pretrain --preset shapes; fi
	$(BIN)/simclr eval shapes-s0 --knn --linear
	@echo
	@echo "Where to look next:"
	@echo "  $(BIN)/simclr pretrain --preset half-hour --data-dir FOLDER                    (your own photos)"
	@echo "  $(BIN)/simclr ui                                                               (every run, in the browser)"
	@echo "  $(BIN)/simclr presets                                                          (CIFAR-10 and more)"
	@echo "  $(BIN)/simclr pretrain --preset shapes --drop color_jitter --drop grayscale    (then eval it: why colour matters)"

# Write the reference from the code, and build the documentation site. Warnings, such as of broken links, are errors.
docs: install
	$(BIN)/python -m website.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser, or with search: $(BIN)/python -m http.server --directory site"

# Run lint, format and tests. One of the tests checks types, and one builds the site.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
