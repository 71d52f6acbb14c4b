# Two commands are all that a fresh Debian machine with Rust, gcc, make and Python 3 needs: `make run` and `make test`.

CARGO ?= cargo
PYTHON ?= python3
VENV := target/venv
ARGS ?=

.PHONY: help run test test-compose lint doc install compare prove-tokens clean

help:
	@echo "make run           start five Redis servers, a designated one, and a proxy (ARGS='--nodes 3' ..)"
	@echo "make test          install what the tests need, and run all but compose"
	@echo "make test-compose  bring docker-compose.yml up and take a lock through it"
	@echo "make lint          rustfmt, clippy, rustdoc"
	@echo "make install       build with the profile of a release and install redlockd"
	@echo "make prove-tokens  50,000 grants over restarts of the counter and the proxies: no token repeats or falls"
	@echo "make compare       measure against rslock on the same servers"

run:
	@tools/need redis-server=redis-server
	$(CARGO) build --release --locked
	target/release/redlockd dev $(ARGS)

test: $(VENV)/ready
	@tools/need redis-server=redis-server
	$(CARGO) test --locked --workspace

# What the tests take from PyPI: a Redlock library to exclude and be excluded by, and a generic gRPC client.
$(VENV)/ready: tests/requirements.txt
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null || tools/need ensurepip=python3-venv
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@

test-compose:
	$(CARGO) build --release --locked
	tests/compose/run target/release/redlockd

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

install:
	$(CARGO) install --locked --profile dist --path .

compare:
	@tools/need redis-server=redis-server
	$(CARGO) build --profile dist --locked --workspace
	target/dist/redlockd-bench compare $(ARGS)

prove-tokens:
	@tools/need redis-server=redis-server
	GRANTS=50000 $(CARGO) test --locked --release --test cluster tokens -- --nocapture

clean:
	$(CARGO) clean
