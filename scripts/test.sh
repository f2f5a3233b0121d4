#!/usr/bin/env bash
# Runs everything that CI checks. Each step prints its name and duration.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
# One profile for all steps, so that C libraries are built only once.
profile=${PROFILE:-sim}
sdk_features=chat-core/sim,chat-core/conformance,chat-store/sqlite,chat-store/cassandra,chat-store/redis
sdk_features+=,chat-transport/kafka,chat-transport/node-link
server_features=chat-server/cluster,chat-server/jwt,chat-server/telemetry,chat-server-ref/cluster,chat-server-ref/telemetry

# Checks that need no services, no C libraries and no long simulation: the core, the embedded server, its stores.
fast() {
    local packages=(-p chat-core -p chat-store -p chat-transport -p chat-server -p chat-server-ref)
    local features=chat-core/sim,chat-core/conformance
    cargo fmt --all --check
    cargo clippy --locked --profile "$profile" "${packages[@]}" --all-targets --features "$features" -- -D warnings
    SIM_SCHEDULES=2000 cargo test --locked --profile "$profile" "${packages[@]}" --features "$features"
}

step() {
    local name=$1
    shift
    echo "=== $name"
    local start=$SECONDS
    "$@"
    echo "=== $name: $((SECONDS - start)) s"
}

lint() {
    cargo fmt --all --check
    cargo clippy --locked --profile "$profile" --workspace --all-targets \
        --features "$sdk_features,$server_features" -- -D warnings
    cargo run -q --locked --profile "$profile" -p xtask
    cargo deny --locked check bans licenses sources
    units
}

# Verifies the systemd units, if systemd-analyze is installed.
units() {
    command -v systemd-analyze >/dev/null || return 0
    local copy unit
    copy=$(mktemp -d)
    for unit in deploy/systemd/*.service; do
        sed 's|/usr/local/bin/chat-server-ref|/bin/true|' "$unit" >"$copy/${unit##*/}"
    done
    systemd-analyze verify --man=no "$copy"/*.service
    rm -r "$copy"
}

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --profile "$profile" --workspace --no-deps \
        --features "$sdk_features,$server_features"
}

# Tests the libraries, with the simulator.
sdk() {
    cargo test --locked --profile "$profile" --workspace \
        --exclude chat-server --exclude chat-server-ref --exclude chat-cli --exclude chat-tests --features "$sdk_features" "$@"
}

# Builds or tests the programs with all features, and their end-to-end tests, in one build.
programs() {
    cargo "$1" --locked --profile "$profile" -p chat-server -p chat-server-ref -p chat-cli -p chat-tests \
        --features "$server_features" "${@:2}"
}

# Unit tests, conformance suites and doc tests of the libraries. `e2e` runs those of the server and the app.
unit() {
    sdk -- --skip no_schedule_breaks_a_law --skip every_mutant_is_killed --skip digest_of_a_thousand_seeds
    cargo run -q --locked --profile "$profile" -p generate-wire -- --check
}

simulate() {
    SIM_SCHEDULES=${SIM_SCHEDULES:-20000} sdk --test simulation -- --nocapture --test-threads 1
}

e2e() {
    programs build --bins --tests
    programs test -- --nocapture --test-threads 1
}

wasm() {
    # The profile of all other steps, so that build scripts and macros are compiled once.
    cargo check --locked --profile "$profile" --target wasm32-unknown-unknown -p chat-core -p chat-signal
    # SQLite is compiled for the browser: this needs clang.
    cargo check --locked --profile "$profile" --target wasm32-unknown-unknown -p chat-client --no-default-features \
        --features client
}

outsider() {
    CARGO_TARGET_DIR=$PWD/target cargo test --locked --manifest-path tests/outsider/Cargo.toml
}

# Tests of a missing service pass, so the missing service itself fails the run, unless services are optional.
not_run() {
    echo "not run: $1 cannot be installed or started here (set CHAT_SERVICES_OPTIONAL=1 to continue without it)"
    [[ -n ${CHAT_SERVICES_OPTIONAL:-} ]]
}

# Creates machines as network namespaces, so that any two can be disconnected from each other. Without them the
# services of several nodes run on loopback, and no network is disconnected.
machines() {
    tests/services/network.sh down && tests/services/network.sh up 12 && return
    tests/services/network.sh down
    return 1
}

# Starts one node and a cluster of each service that can be installed. Tests find them by environment variables.
start_services() {
    single=(env CHAT_SERVICES_DIR="$PWD/target/services" tests/services/services.sh)
    export CHAT_TEST_SERVICES_DIR="$PWD/target/services-cluster" CHAT_TEST_SERVICES_NET=127.0.7
    export CHAT_TEST_SERVICES_DIST="$PWD/target/services/dist"
    local outcome=0 net
    unset CHAT_TEST_SERVICES_NETNS
    if machines; then
        export CHAT_TEST_SERVICES_DIR="$PWD/target/services-machines" CHAT_TEST_SERVICES_NET=10.77.7
        export CHAT_TEST_SERVICES_NETNS=chat
    else
        not_run "A network namespace (needs root and iproute2)" || outcome=$?
    fi
    trap 'stop_clusters; stop_single' EXIT
    net=$CHAT_TEST_SERVICES_NET
    cluster=(env CHAT_SERVICES_DIR="$CHAT_TEST_SERVICES_DIR" CHAT_SERVICES_DIST="$CHAT_TEST_SERVICES_DIST"
        CHAT_SERVICES_NETNS="${CHAT_TEST_SERVICES_NETNS:-}" CHAT_SERVICES_NET="$net" tests/services/services.sh)
    if "${single[@]}" install redis && "${single[@]}" start redis 1 && "${cluster[@]}" start redis 6; then
        export CHAT_TEST_REDIS=redis://127.0.0.1:6379
        export CHAT_TEST_REDIS_CLUSTER="redis-cluster://$net.1:6379,$net.2:6379"
    else
        not_run Redis || outcome=$?
    fi
    if "${single[@]}" install kafka && "${single[@]}" start kafka 1 && "${cluster[@]}" start kafka 3; then
        export CHAT_TEST_KAFKA="kafka://127.0.0.1:9092/test?replication=1"
        export CHAT_TEST_KAFKA_CLUSTER="kafka://$net.1:9092,$net.2:9092/test?replication=3"
    else
        not_run Kafka || outcome=$?
    fi
    if "${single[@]}" install cassandra && "${single[@]}" start cassandra 1 \
        && "${cluster[@]}" start cassandra 3; then
        export CHAT_TEST_CASSANDRA="cassandra://127.0.0.1:9042/test?replication=1"
        export CHAT_TEST_CASSANDRA_CLUSTER="cassandra://$net.1:9042,$net.2:9042/test?replication=3"
    else
        not_run Cassandra || outcome=$?
    fi
    return "$outcome"
}

stop_clusters() {
    "${cluster[@]}" stop || true
    [[ -z ${CHAT_TEST_SERVICES_NETNS:-} ]] || tests/services/network.sh down || true
    unset CHAT_TEST_REDIS_CLUSTER CHAT_TEST_KAFKA_CLUSTER CHAT_TEST_CASSANDRA_CLUSTER
}

stop_single() {
    trap - EXIT
    "${single[@]}" stop || true
    unset CHAT_TEST_REDIS CHAT_TEST_KAFKA CHAT_TEST_CASSANDRA
}

# Runs the conformance suites on real services, then the cluster tests over three gateways and two routers.
services() {
    local outcome=0
    start_services || outcome=$?
    sdk --test redis --test kafka --test cassandra -- --nocapture --test-threads 1 || outcome=$?
    programs build --bins --tests
    # Faults of multi-node services come first. Then these services are stopped to make room.
    programs test --test cluster under_combined_faults -- --nocapture --test-threads 1 || outcome=$?
    stop_clusters
    programs test --test cluster --test data_migration --test reconnect_storm --test operations -- --nocapture --test-threads 1 \
        || outcome=$?
    stop_single
    return "$outcome"
}

# Tests that take too long for each change (an hour and a half): each fault of services alone, a hundred faults of
# all kinds in pairs, stops of up to a minute, and fifty shard owners that are stopped past their lease.
faults() {
    local outcome=0
    start_services || outcome=$?
    programs build --bins --tests
    programs test --test cluster while_services -- --nocapture --test-threads 1 || outcome=$?
    CHAT_TEST_CLUSTER_FAULTS=50 CHAT_TEST_CLUSTER_MAX_STOP=60 \
        programs test --test cluster under_combined_faults -- --nocapture --test-threads 1 || outcome=$?
    stop_clusters
    CHAT_TEST_CLUSTER_FAULTS=50 CHAT_TEST_CLUSTER_KINDS="stopped past" \
        programs test --test cluster while_nodes -- --nocapture --test-threads 1 || outcome=$?
    stop_single
    return "$outcome"
}

# One build. `--release`, because the profile in fuzz/Cargo.toml sets which assertions are enabled.
fuzz() {
    export CARGO_TARGET_DIR=$PWD/target/fuzz
    cargo +nightly fuzz build --release --fuzz-dir fuzz
    local target log
    log=$(mktemp)
    for target in frame session recovery; do
        echo "--- $target"
        if ! cargo +nightly fuzz run --release --fuzz-dir fuzz "$target" -- \
            -max_total_time="${FUZZ_SECONDS:-60}" -rss_limit_mb=2048 -malloc_limit_mb=8192 \
            -print_final_stats=1 >"$log" 2>&1; then
            grep -a -A 3 "panicked\|ERROR:" "$log" || true
            tail -n 40 "$log"
            return 1
        fi
        grep -a "^Done\|peak_rss" "$log"
    done
    rm "$log"
}

case ${1:-all} in
    fast)
        step fast fast
        exit
        ;;
    faults)
        step setup scripts/setup.sh all
        step faults faults
        exit
        ;;
esac
step setup scripts/setup.sh all
step lint lint
step docs docs
step wasm wasm
step unit unit
step services services
step outsider outsider
step simulate simulate
step e2e e2e
step fuzz fuzz
echo "everything passed in $SECONDS s"
