# Thin names for commands that stand on their own. CONTRIBUTING.md explains them.

# The linter takes minutes to build, so nothing but `make lint` needs it.
GOLANGCI = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 200000x

.PHONY: demo build test check vm-test rotations fuzz bench lint

demo: ## show encrypted and plaintext networks on this machine (root)
	go run ./cmd/secure-overlay demo

build: ## one static program in bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/secure-overlay

test: ## everything, with all its set-up (root)
	test/all

check: ## what takes less than a minute and needs no root
	test -z "$$(find . -name '*.go' -not -path './.*' -exec gofmt -l {} +)"
	go vet ./...
	go test ./test/house

vm-test: ## the suites that need a real kernel, in a virtual machine (root)
	test/all vm

fuzz: ## every fuzz target, FUZZTIME inputs each
	FUZZTIME=$(FUZZTIME) test/all fuzz

rotations: ## the tests that rotate keys, at their full size; hours (root)
	SECURE_OVERLAY_TEST_ROTATIONS=200 SECURE_OVERLAY_TEST_REQUIRE=netns \
		go test -v -timeout 4h ./test/e2e -run 'Test(Rotation|TwoRotations|KillAt|CutOff|Scheduled|Replay|OldKeys|Partition|Rogue|HandshakeFlood|Toggle|Churn|MTUMatrix)'
	SECURE_OVERLAY_TEST_ROTATIONS=200 SECURE_OVERLAY_TEST_REQUIRE=netns,vm \
		go test -v -timeout 12h ./test/vm -run TestVM -suites test/e2e-

bench: ## throughput, compared within one run, phases of a rotation, the control plane (root)
	go run ./test/bench throughput
	go run ./test/bench rotate
	go run ./test/bench control

lint:
	$(GOLANGCI) run ./...
