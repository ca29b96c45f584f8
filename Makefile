# Verbatim. `make help` lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X verbatim.dev/recorder/record.Build=$(VERSION)
FUZZTIME ?= 10s
BENCH    ?=

.DEFAULT_GOAL := help
.PHONY: help build run demo test race lint fuzz bench bench-quick conformance oracle clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/extproc and bin/recorder
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./extproc ./recorder

run: build ## start everything on loopback, record a demonstration, stay up until Ctrl-C
	@$(GO) run ./deploy/local

demo: build ## the same, then stop: exits 0 or 1
	@$(GO) run ./deploy/local -once

test: ## all tests, with the real Envoy, emulator and clients (installs them under .tools once)
	$(GO) test -timeout 40m ./...

race: ## all tests with the race detector
	$(GO) test -race -timeout 80m ./...

lint: ## gofmt, go vet, staticcheck
	@out="$$(gofmt -l .)"; if [ -n "$$out" ]; then echo "not formatted (run gofmt -w):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

fuzz: ## every fuzz target for FUZZTIME (10s)
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

bench: build ## Envoy alone, a no-op processor and Verbatim, side by side in one run
	$(GO) run ./test/bench $(BENCH)

bench-quick: build ## the same with fewer rounds and smaller results
	$(GO) run ./test/bench -quick $(BENCH)

conformance: ## assumptions about Google's services, against a real project (see test/conformance)
	$(GO) test -tags conformance -count=1 -v ./test/conformance

oracle: ## policy/sql against Google's own parser; builds for minutes and takes 7 GB (see test/oracle)
	cd test/oracle && $(GO) test -tags oracle -count=1 -timeout 60m ./...

clean: ## removes what was built; recordings under .verbatim stay
	rm -rf bin
