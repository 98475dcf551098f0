# make run boots the demo, make test proves it. The rest are their parts.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

GO ?= go
export CGO_ENABLED := 0
GOBUILD := $(GO) build -trimpath -buildvcs=false -ldflags='-s -w -buildid='

# What programs and base are made from; a change of anything else rebuilds nothing.
sources = go.mod go.sum $(shell find $(1) -type f ! -name '*_test.go' ! -path '*/testdata/*' ! -path '*/secrets/*')
SOURCES := $(call sources,appliance cmd configs image provision tpm webui)
BASE_SOURCES := $(call sources,appliance cmd/boxinit cmd/signetd configs/modules.txt image/base.go image/format image/mkbase provision tpm webui)
DEMO := $(shell find configs/demo -type f ! -path '*/secrets/*' 2>/dev/null)

BASE := build/base/base.json
KEYS := configs/demo/secrets/policy.key
IMAGE := build/demo/manifest.json

# Debian packages by what needs them: program or file, then package. The kernel is not among them: it
# is downloaded and unpacked below build/, never installed.
RUN_PARTS := qemu-system-x86_64:qemu-system-x86 swtpm:swtpm swtpm_setup:swtpm-tools /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf
TEST_PARTS := $(RUN_PARTS) pki:strongswan-pki \
	/usr/lib/ipsec/plugins/libstrongswan-openssl.so:libstrongswan-standard-plugins \
	/usr/lib/ipsec/plugins/libstrongswan-curl.so:libstrongswan-extra-plugins \
	scepclient:scep getcert:certmonger openssl:openssl curl:curl ocsptool:gnutls-bin \
	/usr/share/java/bcpkix.jar:libbcpkix-java /usr/share/java/bctls.jar:libbctls-java javac:default-jdk-headless /usr/sbin/nginx:nginx-light /usr/sbin/haproxy:haproxy \
	/usr/lib/systemd/boot/efi/linuxx64.efi.stub:systemd-boot-efi sbverify:sbsigntool mtype:mtools \
	/sbin/fsck.vfat:dosfstools /sbin/mke2fs:e2fsprogs tpm2_getcap:tpm2-tools chromium:chromium \
	/etc/ssl/certs/ca-certificates.crt:ca-certificates dbus-run-session:dbus git:git npm:npm \
	gcc:gcc /usr/include/stdlib.h:libc6-dev /usr/sbin/rsyslogd:rsyslog /usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_ossl.so:rsyslog-openssl

# What the console's pages are checked with for accessibility; the browser tests know its hash.
AXE := build/axe/node_modules/axe-core/axe.min.js
AXE_VERSION := 4.14.1

# Optional arguments of signet run; make run FRESH=1 is make run ARGS=--fresh.
ARGS ?= $(if $(FRESH),--fresh)

.PHONY: build image run test bench screenshots size clean run-parts test-parts lists help

build: bin/signet bin/signetd $(BASE) $(KEYS) ## bin/signet, bin/signetd, build/base and the demo's signing keys

image: $(IMAGE) ## the demo site baked into build/demo

run: run-parts ## boot the demo and stay; Ctrl-C shuts it down (FRESH=1 starts over)
	@$(MAKE) --no-print-directory image
	@bin/signet run build/demo $(ARGS)

test: test-parts $(AXE) ## all tests: unit, store, TPM, real clients, real boots
	@$(MAKE) --no-print-directory image
	$(GO) vet ./...
	$(GO) test -timeout 40m ./cmd/signet ./appliance ./webui ./... # the longest first, the rest beside them

screenshots: test-parts $(AXE) ## pictures of the console's pages in build/screenshots: phone and desktop, light and dark
	@rm -rf build/screenshots && mkdir -p build/screenshots
	SIGNET_SCREENSHOTS=$(CURDIR)/build/screenshots $(GO) test -count 1 -run 'Browser|^TestConsole$$' ./webui ./appliance
	@ls build/screenshots | wc -l | xargs -I{} echo "{} pictures in build/screenshots"

size: run-parts ## size of the image's parts, the guest's memory, signetd's, and its uptime at ready
	@$(MAKE) --no-print-directory image
	@ls -lL --block-size=K build/base build/demo/signet.efi | awk '$$5 ~ /K$$/ {printf "%9s  %s\n", $$5, $$NF}'
	@du -k build/demo/signet.img | awk '{printf "%8sK  %s (written part)\n", $$1, $$2}'
	@bin/signet bake configs/demo -o build/size --base build/base >/dev/null 2>&1
	@bin/signet run build/size --fresh --detach --json 2>&1 >/dev/null | grep uptime; bin/signet stop build/size >/dev/null 2>&1

# bench HEADING, PACKAGE, BENCHMARKS, TIME OR COUNT: a table of what go test measures.
define bench
	@printf '\n%s\n' "$(1)"
	@$(GO) test -timeout 30m -run '^$$' -bench '$(3)' -benchtime $(4) $(2) 2>&1 | awk "$$BENCH_TABLE"
endef

# Name, time of one operation, and what else was counted; whatever failed as it stands.
define BENCH_TABLE
function span(ns) {
	if (ns >= 1e9) return sprintf("%.2f s ", ns / 1e9)
	if (ns >= 1e6) return sprintf("%.2f ms", ns / 1e6)
	if (ns >= 1e3) return sprintf("%.1f us", ns / 1e3)
	return sprintf("%.0f ns", ns)
}
/^Benchmark/ && $$4 == "ns/op" {
	sub(/^Benchmark/, "", $$1); sub(/-[0-9]+$$/, "", $$1); more = ""
	for (i = 5; i < NF; i += 2)
		if ($$(i + 1) !~ /^(B|allocs)\/op$$/) more = more sprintf("  %9.4g %s", $$i, $$(i + 1))
	printf "  %-46s %10s%s\n", $$1, span($$3), more
}
/^--- (FAIL|SKIP)|^FAIL|^panic|_test\.go:[0-9]+: /
endef
export BENCH_TABLE

bench: test-parts ## what enrollment, lists, OCSP and signatures cost here, variants and peers side by side
	$(call bench,Enrollment by the whole service over HTTP with CA keys in a software TPM; micromdm: scepserver with its key in a file. ms: processor time.,./appliance,Enrollment,256x)
	$(call bench,A SCEP message opened: signature verified and content decrypted.,./appliance,Message,1s)
	$(call bench,Syncs of the disk: an enrollment without HTTP and TPM; a transaction of the store.,./appliance/enroll ./appliance/store,Enroll|Transaction,512x)
	$(call bench,Published with 10000 of 100000 certificates revoked: the list signed anew and current; OCSP kept and signed live.,./appliance/validation,Published,1s)
	$(call bench,The audit log of a million records: appending and pages of the explorer and a record verified; export and verification.,./webui,Explorer,3x)
	$(call bench,What sending the audit log to a receiver costs whoever appends.,./appliance/syslog,Append,1s)
	$(call bench,Messages of SCEP and EST.,./appliance/cms,.,200ms)
	$(call bench,Signatures of the TPM by its policy; of the key holder: authorities by the TPM and ra and tls in memory.,./tpm ./appliance/keys,Sign,1s)

clean: ## remove what was built and the demo's machine; signing keys stay
	rm -rf bin build

bin/signet bin/signetd: bin/%: $(SOURCES)
	@echo "building $@"
	@$(GOBUILD) -o $@ ./cmd/$*

$(BASE): $(BASE_SOURCES) | lists
	@$(GO) run ./image/mkbase -o build/base -work build -modules configs/modules.txt
	@touch $@

# Boxes are bound to these keys: they are made once and never replaced or removed.
$(KEYS): | bin/signet
	@bin/signet init --keys-only configs/demo

$(IMAGE): bin/signet $(BASE) $(KEYS) $(DEMO)
	@bin/signet bake configs/demo -o build/demo --base build/base

$(AXE): Makefile | test-parts
	@npm install --prefix build/axe --no-save --no-audit --no-fund --ignore-scripts --loglevel=error axe-core@$(AXE_VERSION) >/dev/null \
		|| { echo "could not fetch axe-core $(AXE_VERSION) by npm: is there a network?" >&2; exit 1; }
	@touch $@

# install-missing PARTS, WHY: installs the packages of absent parts, as root or by sudo.
define install-missing
	@missing=(); for part in $(1); do \
		if [[ $$part == /* ]]; then [[ -e $${part%%:*} ]] || missing+=("$${part##*:}"); \
		else command -v "$${part%%:*}" >/dev/null || missing+=("$${part##*:}"); fi; done; \
	if (( $${#missing[@]} )); then \
		echo "installing $${missing[*]}: $(2)"; \
		sudo=; if (( EUID != 0 )); then sudo=sudo; \
			command -v sudo >/dev/null || { echo "not root and no sudo: install $${missing[*]} by hand" >&2; exit 1; }; fi; \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$${missing[@]}" >/dev/null \
			|| { echo "could not install $${missing[*]}: is there a network, and is this Debian 12?" >&2; exit 1; }; fi
endef

run-parts:
	$(call install-missing,$(RUN_PARTS),make run boots the image with them)

test-parts:
	$(call install-missing,$(TEST_PARTS),make test needs them)

# The base's packages are found in apt's lists; a fresh machine or container may have none.
lists:
	@if ! apt-cache show linux-image-amd64 >/dev/null 2>&1; then \
		echo "fetching Debian's package lists: the base is made from Debian packages"; \
		sudo=; if (( EUID != 0 )); then sudo=sudo; fi; \
		$$sudo apt-get update -qq || { echo "could not fetch the package lists: is there a network?" >&2; exit 1; }; fi

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
