# The main commands are `make run` and `make test`. PROFILE and CARGO_TARGET_DIR select where programs are built.
CARGO ?= cargo
PROFILE ?= release
TARGET ?= $(or $(CARGO_TARGET_DIR),target)
PROGRAMS = $(TARGET)/$(patsubst dev,debug,$(PROFILE))

.PHONY: run chat test test-fast test-faults evidence api readme bench bench-cluster generate setup

run: ## Build and start the server, and print the next commands. Its pid is in target/server.pid.
	@$(CARGO) build --profile $(PROFILE) --locked -p chat-server-ref
	@echo; echo "The server starts on ws://127.0.0.1:7777. In another terminal:"; \
	 echo "    make chat"; \
	 echo "    $(PROGRAMS)/chat --profile alice register alice"; \
	 echo "    $(PROGRAMS)/chat --profile alice"; echo
	@echo $$$$ >$(TARGET)/server.pid; exec $(PROGRAMS)/chat-server-ref serve

chat: ## Build the terminal client (needs protoc: `make setup` installs it).
	@scripts/setup.sh protoc
	@$(CARGO) build --profile $(PROFILE) --locked -p chat-cli

test: ## Install what the tests need and run everything that CI checks.
	@scripts/test.sh

test-fast: ## Lint, unit tests and a short simulation of core and server, without services.
	@scripts/test.sh fast

test-faults: ## 100 faults of nodes, services and network, and 50 stopped shard owners; takes 90 minutes.
	@scripts/test.sh faults

evidence: ## Measure the figures of docs/evidence again; `make evidence PART=simulate` measures one part.
	@scripts/evidence.sh $(PART)

api: ## List the public items of the libraries in docs/api.
	@scripts/api.sh write

readme: chat ## Build the programs and run the shell blocks of README.md.
	@$(CARGO) build --profile $(PROFILE) --locked -p chat-server-ref
	@CARGO=true PROFILE=$(PROFILE) scripts/readme.sh

setup:
	@scripts/setup.sh all

bench: ## Benchmark the server and the baseline in one run.
	@scripts/setup.sh protoc
	@$(CARGO) build --release --locked -p chat-server-ref -p chat-tests
	@$(TARGET)/release/bench

bench-cluster: ## Benchmark path time and throughput with real services on this machine (make setup; needs Java and Maven).
	@scripts/bench-cluster.sh

generate: ## Generate the wire types from chat-core/proto.
	@$(CARGO) run -q --locked -p generate-wire
