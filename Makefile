# Two commands are all that a fresh Debian machine with Rust, gcc, make and Python 3 needs: `make run` and `make test`.

CARGO ?= cargo
PYTHON ?= python3
VENV := target/venv
ARGS ?=
DURATION ?= 30m
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: help run test test-alerts test-compose lint doc install bench bench-long compare stream contended prove-tokens prove-restarts prove-counter prove-run prove-failover prove-rolling prove-sim mutants test-matrix soak micro micro-renew micro-bench clean

help:
	@echo "make run           start five Redis servers, a designated one, and a proxy (ARGS='--nodes 3' ..)"
	@echo "make test          install what the tests need, and run all but compose"
	@echo "make test-alerts   check Prometheus's rules, and that each alert fires when it should and only then"
	@echo "make test-matrix   compare the simulated node to every server that is known to work, Redis 6.2 to Valkey 9.1"
	@echo "make test-compose  bring docker-compose.yml up and take a lock through it"
	@echo "make lint          rustfmt, clippy, rustdoc"
	@echo "make install       build with the profile of a release and install redlockd"
	@echo "make prove-tokens  50,000 grants over restarts of the counter and the proxies: no token repeats or falls"
	@echo "make prove-counter  100,000 tokens over every loss of the designated counter: none repeats or falls"
	@echo "make prove-run     100 commands under locks whose proxy is stopped: each is gone before the lock is somebody else's"
	@echo "make prove-failover  1,000 leases whose proxy is killed, stopped, drained: none is lost, none is held twice"
	@echo "make prove-rolling  proxies and nodes restarted one after another under 500 pairs a second: no call fails (ROLLS=5)"
	@echo "make prove-restarts  500 restarts of nodes without persistence under load: no two leases overlap, unless the quarantine is off"
	@echo "make prove-sim     simulated runs: no promise breaks (SIM_SEEDS=100000 for a night)"
	@echo "make mutants       break the protocol on purpose, in every way we know: each is caught"
	@echo "make soak          real servers under real faults for DURATION=30m; the report is target/faults/report.html"
	@echo "make micro         count the instructions of the acquire path, and compare them with those that are stored"
	@echo "make micro-renew   store those that are counted now"
	@echo "make micro-bench   time the engine, the codec, batches and lines, without any server (ARGS=--test: each once)"
	@echo "make bench         measure everything, in less than ten minutes: the ratios, the tables, target/bench/results.json and report.html"
	@echo "make bench-long    a million held locks, leases in sessions, 1 to 7 nodes, three proxies, ten minutes of a hung node: a quarter of an hour"
	@echo "make compare       measure against rslock on the same servers (ARGS='--clients 1,64' ..: redlockd-bench load --help)"
	@echo "make stream        measure a session against unary calls, and rslock, with callers on all processors"
	@echo "make contended     measure a lock that many want, against etcd and rslock"

run:
	@tools/need redis-server=redis-server
	$(CARGO) build --release --locked
	target/release/redlockd dev $(ARGS)

# Debian has PostgreSQL's programs off PATH, a folder for each version.
test: $(VENV)/ready test-alerts
	@tools/need etcd=etcd-server redis-server=redis-server
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || tools/need initdb=postgresql
	$(CARGO) test --locked --workspace
	SIM_SEEDS=1000 $(CARGO) test --locked --release --test sim

test-alerts:
	@tools/need promtool=prometheus
	promtool check rules deploy/prometheus/alerts.yml
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/alerts_test.yml

# Every one of them has to be there; the lines of the first test say which versions ran.
test-matrix: $(VENV)/ready
	@tools/need redis-server=redis-server
	CONTRACT=all $(CARGO) test --locked --test contract versions -- --nocapture
	CONTRACT=all $(CARGO) test --locked --test contract

# What the tests take from PyPI: a Redlock library to exclude and be excluded by, a generic gRPC client, and servers of other
# versions than Debian's.
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
	$(CARGO) clippy --locked --no-default-features --features client --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

install:
	$(CARGO) install --locked --profile dist --path .

# What is shipped is what is measured.
BENCH := target/dist/redlockd-bench

.PHONY: bench-build
bench-build:
	@tools/need etcd=etcd-server redis-server=redis-server
	$(CARGO) build --profile dist --locked --package redlockd --package redlockd-bench

# A page also of results that are not good.
bench: bench-build
	$(BENCH) suite --json target/bench/results.json $(ARGS); code=$$?; $(BENCH) report && exit $$code

bench-long: bench-build
	$(BENCH) suite --long --json target/bench/results-long.json $(ARGS); code=$$?; \
	  $(BENCH) report --in target/bench/results-long.json --out target/bench/report-long.html && exit $$code

compare: bench-build
	$(BENCH) load --targets unary,tonic,stream,rslock $(ARGS)

# With callers on as many threads as a program with tokio's main has.
stream: bench-build
	$(BENCH) load --targets stream,tonic,unary,rslock --threads $$(nproc) $(ARGS)

contended: bench-build
	$(BENCH) contended $(ARGS)

prove-tokens:
	@tools/need redis-server=redis-server
	GRANTS=50000 $(CARGO) test --locked --release --test cluster tokens -- --nocapture

# The same seed, pace and clients twice: the first time as it is, the second time with the quarantine off.
prove-restarts: export RESTARTS := $(or $(RESTARTS),500)
prove-restarts: export RESTARTS_SEED := $(or $(RESTARTS_SEED),1)
prove-restarts:
	@tools/need redis-server=redis-server
	$(CARGO) test --locked --release --test restarts -- --nocapture
	MUTANT=quarantine-ignored $(CARGO) test --locked --release --features mutants --test restarts -- --nocapture

# A command under a lock whose proxy is stopped, or a thousand leases whose proxy is killed, stopped or drained.
prove-run:
	@tools/need redis-server=redis-server
	TRIALS=$(or $(TRIALS),100) $(CARGO) test --locked --release --test cli a_proxy_that_stops -- --nocapture

prove-failover:
	@tools/need redis-server=redis-server
	LEASES=$(or $(LEASES),1000) $(CARGO) test --locked --release --test client failover -- --nocapture --test-threads 1

# Once for each kind of counter, one after the other.
prove-rolling:
	@tools/need redis-server=redis-server
	ROLLS=$(or $(ROLLS),5) $(CARGO) test --locked --release --test rolling rolling_restarts -- --nocapture --test-threads 1

prove-counter:
	@tools/need redis-server=redis-server
	TOKENS=100000 $(CARGO) test --locked --release --test membership no_loss -- --nocapture

prove-sim:
	SIM_SEEDS=$(or $(SIM_SEEDS),20000) $(CARGO) test --locked --release --test sim -- --nocapture

# The harness's own lines left out.
mutants:
	@$(CARGO) test --locked --release --features mutants --test sim mutants -- --ignored --nocapture \
	  | grep --line-buffered -E '^(caught|SURVIVED|[0-9]+/[0-9]+ caught)'

# The same instructions on every machine, so that a change that costs some is seen where times are too noisy to tell.
micro:
	@tools/need valgrind=valgrind
	$(CARGO) build --locked --release --package redlockd-micro
	target/release/redlockd-micro check

micro-renew:
	@tools/need valgrind=valgrind
	$(CARGO) build --locked --release --package redlockd-micro
	target/release/redlockd-micro renew

micro-bench:
	$(CARGO) bench --locked --package redlockd-micro -- $(ARGS)

soak:
	@tools/need redis-server=redis-server
	DURATION=$(DURATION) $(CARGO) test --locked --release --test faults run:: -- --nocapture --test-threads 1

clean:
	$(CARGO) clean
