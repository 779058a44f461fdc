# What a developer types. `make help` lists it. Tests of mounts take root and /dev/fuse.

CARGO   ?= cargo
HELM    ?= helm
# Profile of demo and kills; `make bench` always measures a release build.
PROFILE ?= dev
ROUNDS  ?= 30
KEEP    ?= 0
# Nodes of `make cluster`.
NODES   ?= 2
# Of `make test-survive`.
KILLS   ?= 1000
# Of `make test-permits`.
TURNS   ?= 1000
# Of `make test-power`.
CUTS    ?= 20
# Of `make test-boot`: clean ends of a machine.
BOOTS   ?= 3
# Of `make sim`.
RUNS    ?= 1000
FROM    ?= 0
export ROUNDS KEEP NODES KILLS CUTS

NEXTEST_VERSION := 0.9.143
DENY_VERSION    := 0.20.2

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BIN_DIR    := $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Of the whole workspace, and not of packages: with other features the dependencies would be built once more.
PROGRAMS   := presto presto-holder lento intermezzo demo kill adopt stuck permits on-demand durable survive power kernel walk bench boot intermezzo-boot
CLUSTER    := cluster cluster-check cluster-test images kubectl-intermezzo

.PHONY: help demo test sim test-fast test-permits test-on-demand test-durable test-kill test-survive test-power test-kernel test-boot boot test-cluster workload adopt stuck bench bins format clippy architecture chart deny unit mounts install-tools clean-fleets images images-test cluster cluster-down cluster-tools cluster-check

help:
	@echo "make demo            two nodes, real files, proof that they are equal (root; KEEP=1 leaves it running)"
	@echo "make test            everything, from format to kills and demo (root)"
	@echo "make test-fast       the inner loop: format, clippy, architecture, tests without mounts"
	@echo "make test-kill       kill -9 of random processes under a workload (root; ROUNDS=30 SEED=n)"
	@echo "make test-on-demand  a node that fetches contents when they are opened, and its server away (root)"
	@echo "make test-permits    three nodes write to one file under permits, one at a time (root; TURNS=1000)"
	@echo "make test-durable    fsync that waits for the server's disk, and its server away (root)"
	@echo "make test-survive    kill -9 of presto under programs that may notice nothing (root; KILLS=1000 SEED=n)"
	@echo "make sim             random histories on simulated nodes (RUNS=1000 for each mix, FROM=first seed)"
	@echo "make test-power      power cuts of a virtual machine that is a node (root, QEMU; CUTS=20 SEED=n)"
	@echo "make test-kernel     presto's tests on Linux 6.1, without FUSE passthrough (root, QEMU)"
	@echo "make test-boot       machines whose root file system is a volume, busybox and systemd (root, QEMU; BOOTS=3, ONLY=names)"
	@echo "make boot            one such boot, as it looks on the console (root, QEMU; DISKLESS=1: of a machine without a disk)"
	@echo "make stuck           one node's lento stands still (SIGSTOP) while the others write (root)"
	@echo "make test-cluster    InterMezzo on a real Kubernetes of three nodes, end to end (root; ONLY=names of scenarios)"
	@echo "make bench           figures beside the targets (root; release build)"
	@echo "make chart           what helm renders (HELM=program)"
	@echo "make images          the container images, as archives in target/images (buildah)"
	@echo "make cluster         a real Kubernetes on this machine with InterMezzo in it (root; NODES=2; minutes the first time)"
	@echo "make cluster-down    takes it away"
	@echo "make cluster-check   the test cluster itself is what its users take it for (root)"
	@echo "make install-tools   cargo-nextest and cargo-deny, if they are absent"

demo: bins
	$(BIN_DIR)/demo

# The kill rounds here are a sample; `make test-kill` runs as many as are asked for.
test: format clippy architecture deny unit
	$(MAKE) workload
	$(MAKE) adopt
	$(MAKE) test-kill ROUNDS=12
	$(MAKE) test-permits TURNS=100
	$(MAKE) test-on-demand
	$(MAKE) test-durable
	$(MAKE) test-survive KILLS=100
	$(MAKE) test-power CUTS=6
	$(MAKE) test-boot ONLY=seed,killed,cut,shutdown,diskless BOOTS=1
	$(MAKE) demo
	$(MAKE) test-cluster

# Random histories on simulated nodes, each mix RUNS times. What goes wrong says its seed.
sim:
	SIM_RUNS=$(RUNS) SIM_FROM=$(FROM) $(CARGO) test -p lento-core --test simulation

# Mount tests skip themselves by name here; `make unit` runs them.
test-fast: format clippy architecture
	$(CARGO) nextest run --workspace --profile fast

test-kill: bins
	$(BIN_DIR)/kill --rounds $(ROUNDS)

# Nodes that write to one file, one at a time: nothing is lost, nothing conflicts.
test-permits: bins
	$(BIN_DIR)/permits --turns $(TURNS)

# Contents come when they are opened.
test-on-demand: bins
	$(BIN_DIR)/on-demand

# fsync waits for the server.
test-durable: bins
	$(BIN_DIR)/durable

# Presto killed under programs that may notice nothing but a pause.
test-survive: bins
	$(BIN_DIR)/survive --kills $(KILLS)

# The power of a node goes while programs work: what fsync promised is there, on both nodes.
test-power: bins
	$(BIN_DIR)/power --cuts $(CUTS)

# Presto on a kernel without passthrough and RESEND, in a virtual machine.
test-kernel: bins
	CARGO="$(CARGO)" $(BIN_DIR)/kernel

# Virtual machines that boot from a volume.
test-boot: bins
	ROUNDS=$(BOOTS) $(BIN_DIR)/boot $(if $(ONLY),--only $(ONLY))

boot: bins
	$(BIN_DIR)/boot --show $(if $(DISKLESS),--diskless)

# A directory adopted through kills, changes behind presto's back, a wiped node.
adopt: bins
	$(BIN_DIR)/adopt

# One node's lento stands still while the others write.
stuck: bins
	$(BIN_DIR)/stuck

# From `helm install` to `helm uninstall`. If it fails, the logs of everything are below cluster-logs.
test-cluster: images-test
	$(BIN_DIR)/cluster-test --images $(TARGET_DIR)/images-$(PROFILE) --logs $(TARGET_DIR)/cluster-logs $(if $(ONLY),--only $(ONLY))

# The same workload without kills.
workload: bins
	$(BIN_DIR)/kill --spare --rounds 3

bench:
	$(MAKE) bins PROFILE=release
	$(TARGET_DIR)/release/bench

bins:
	$(CARGO) build --locked --profile $(PROFILE) --workspace $(PROGRAMS:%=--bin %)

# The chart as helm renders it; HELM names the program where it is not in PATH. `make unit` runs the same where helm is there.
chart:
	HELM=$(HELM) $(CARGO) test --locked -p intermezzo-operator --test chart

# The archives of the images; the sizes are printed.
images: cluster-programs
	$(BIN_DIR)/images --out $(TARGET_DIR)/images

# The same of programs as tests have them.
images-test: cluster-programs
	$(BIN_DIR)/images --out $(TARGET_DIR)/images-$(PROFILE) --profile $(PROFILE)

cluster: images
	$(BIN_DIR)/cluster up --images $(TARGET_DIR)/images

cluster-down: cluster-programs
	$(BIN_DIR)/cluster down

# Kubernetes, CoreDNS and helm: built once, about ten minutes on two cores.
cluster-tools: cluster-programs
	$(BIN_DIR)/cluster tools

cluster-check: cluster-programs
	$(BIN_DIR)/cluster-check --logs $(TARGET_DIR)/cluster-logs

.PHONY: cluster-programs
cluster-programs:
	$(CARGO) build --locked --profile $(PROFILE) --workspace $(CLUSTER:%=--bin %)

format:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

architecture:
	$(CARGO) test --locked --quiet --workspace --test architecture

deny:
	$(CARGO) deny --locked --all-features --log-level error check bans licenses sources

unit:
	$(CARGO) nextest run --locked --workspace
	$(CARGO) test --locked --workspace --doc --quiet

install-tools:
	@command -v cargo-nextest >/dev/null || $(CARGO) install cargo-nextest@$(NEXTEST_VERSION) --locked
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny@$(DENY_VERSION) --locked
