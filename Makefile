# The two commands are `make run` and `make test`.
CARGO ?= cargo

.PHONY: run chat test test-fast test-faults bench bench-cluster generate setup

run: ## Build and start the server; it says what to type next.
	@$(CARGO) build --release --locked -p chat-server-ref
	@echo; echo "The server starts on ws://127.0.0.1:7777. In another terminal:"; \
	 echo "    make chat"; \
	 echo "    target/release/chat --profile alice register alice"; \
	 echo "    target/release/chat --profile alice"; echo
	@target/release/chat-server-ref serve

chat: ## Build the terminal client (needs protoc: `make setup` installs it).
	@scripts/setup.sh protoc
	@$(CARGO) build --release --locked -p chat-cli

test: ## Everything CI checks, from nothing.
	@scripts/test.sh

test-fast: ## What needs no services: lint, unit tests and a short simulation of core and server.
	@scripts/test.sh fast

test-faults: ## A hundred faults of cluster, services and network, and fifty zombie owners: an hour and a half.
	@scripts/test.sh faults

setup:
	@scripts/setup.sh all

bench: ## Server and baseline in one run.
	@scripts/setup.sh protoc
	@$(CARGO) build --release --locked -p chat-server-ref -p chat-tests
	@target/release/bench

bench-cluster: ## Path time and throughput over real services on this machine (make setup; needs Java and Maven).
	@scripts/bench-cluster.sh

generate: ## The wire's types from chat-core/proto.
	@$(CARGO) run -q --locked -p generate-wire
