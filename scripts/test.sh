#!/usr/bin/env bash
# Runs everything that CI checks. docs/ci.md describes the steps and where the time goes.
#
#   scripts/test.sh               all steps, then the times of the steps and the 15 slowest parts
#   scripts/test.sh fast          lint and tests of core and server, without services
#   scripts/test.sh faults        the long tests of faults
#   scripts/test.sh only STEP...  these steps, for example `only setup build e2e`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
# Tests link the OpenSSL of the system, if it is installed: the compilation of the vendored one takes three minutes.
! pkg-config --atleast-version=3 libcrypto 2>/dev/null || export OPENSSL_NO_VENDOR=1
# One profile for all steps, so that C libraries are built only once.
profile=${PROFILE:-sim}
# One set of features and one selection of packages for clippy, documentation, unit tests and end-to-end tests. Cargo
# unifies the features of dependencies over the selected packages: another selection would compile 91 crates again.
# `chat-core/sim` is not in the set, because the end-to-end tests run the programs as they are shipped.
features=chat-core/conformance,chat-store/sqlite,chat-store/cassandra,chat-store/redis
features+=,chat-transport/kafka,chat-transport/node-link
features+=,chat-server/cluster,chat-server/jwt,chat-server/telemetry,chat-server-ref/cluster,chat-server-ref/telemetry
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
logs=$target/ci
# The simulator runs at least SIM_SCHEDULES schedules of each kind, and more while SIM_SECONDS last.
: "${SIM_SCHEDULES:=3500}" "${SIM_SECONDS:=420}"
# Faults of nodes: at least one of each kind, at most three, by the time that a fault takes on this machine.
: "${FAULT_SECONDS:=360}"
background=

. scripts/times.sh

# Checks that need no services, no C libraries and no long simulation: the core, the embedded server, its stores.
fast() {
    local packages=(-p chat-core -p chat-store -p chat-transport -p chat-server -p chat-server-ref)
    local features=chat-core/sim,chat-core/conformance
    cargo fmt --all --check
    cargo clippy --locked --profile "$profile" "${packages[@]}" --all-targets --features "$features" -- -D warnings
    SIM_SCHEDULES=2000 cargo test --locked --profile "$profile" "${packages[@]}" --features "$features"
}

# Runs a cargo command on all packages with all features.
workspace() {
    echo "--- cargo $* of the workspace"
    cargo "$1" --locked --profile "$profile" --workspace --features "$features" "${@:2}"
}

# Tests the core with the simulator. `workspace` compiles the core without it.
core() {
    echo "--- cargo test $* of the core with the simulator"
    cargo test --locked --profile "$profile" -p chat-core --features sim,conformance "$@"
}

# Prints an option for each integration test in these directories, without the tests of a service. Options select the
# tests, because a selection of packages would change the features of dependencies.
tests_in() {
    local dir
    for dir in "$@"; do
        [[ -d $dir ]] || continue
        find "$dir" -maxdepth 1 -name '*.rs' -printf '%f\n' | sed 's/\.rs$//'
        find "$dir" -mindepth 2 -maxdepth 2 -name main.rs -printf '%P\n' | sed 's|/main\.rs$||'
    done | sort -u | grep -vxE 'redis|kafka|cassandra' | sed 's/^/--test=/'
}

lint() {
    cargo fmt --all --check
    workspace clippy --all-targets --features chat-core/sim -- -D warnings
    cargo deny --locked check bans licenses sources
    scripts/advisories.sh
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
    RUSTDOCFLAGS="-D warnings" workspace doc --no-deps --features chat-core/sim
}

# Compares the public items of the libraries with docs/api. Uses what clippy and `docs` compiled.
api() {
    scripts/api.sh check
}

wasm() {
    echo "--- cargo check for wasm32"
    # The profile of all other steps, so that build scripts and macros are compiled once.
    cargo check --locked --profile "$profile" --target wasm32-unknown-unknown -p chat-core -p chat-signal
    # SQLite is compiled for the browser: this needs clang.
    cargo check --locked --profile "$profile" --target wasm32-unknown-unknown -p chat-client --no-default-features \
        --features client
}

# Builds all programs and tests: the only build of `unit`, `services`, `readme` and `e2e`. The simulator has its own.
build() {
    workspace build --bins --examples --tests
    core --no-run
}

# Unit tests, conformance suites and doc tests of all crates, and the checks of the source tree. `services` runs the
# tests of services, `e2e` the end-to-end tests.
unit() {
    local integration
    mapfile -t integration < <(tests_in chat-*/tests chat-client/*/tests)
    workspace test --lib --bins "${integration[@]}"
    workspace test --doc
    core --tests -- --skip no_schedule_breaks_a_law --skip every_mutant_is_killed --skip digest_of_a_thousand_seeds
    "$target/$profile/xtask"
    "$target/$profile/generate-wire" --check
}

# Runs the simulator: the number of schedules follows the time budget, with a floor. Without cargo, which would hold
# the lock of the build directory while other steps have the cores.
run_simulation() { # PROGRAM
    local program=$1 began=$SECONDS took schedules=$SIM_SCHEDULES probe=${SIM_PROBE:-500}
    echo "     Running tests/simulation.rs ($program)"
    SIM_SCHEDULES=$probe "$program" no_schedule --nocapture
    took=$((SECONDS - began))
    if ((took > 0 && SIM_SECONDS * probe / took > schedules)); then
        schedules=$((SIM_SECONDS * probe / took))
    fi
    echo "budget $SIM_SECONDS s, $probe schedules of each kind took $took s: $schedules of each kind"
    # The digest asserts nothing and has one thread: `make evidence` prints it.
    SIM_SCHEDULES=$schedules "$program" --nocapture --test-threads 1 --skip digest_of_a_thousand_seeds
}

# Builds the simulator, and prints the path of its program.
simulator() {
    core --test simulation --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p'
}

# Starts the simulator beside the steps that wait for services, sleeps and one-threaded programs, and then the build of
# the fuzz targets. Both run only while no other process wants the core.
start_background() {
    local idle=(nice -n 19) program
    ! chrt --idle 0 true 2>/dev/null || idle=(chrt --idle 0)
    program=$(simulator)
    rm -f "$logs/simulation.outcome" "$logs/fuzz-build.outcome"
    # In its own process group, so that it ends together with its children.
    setsid "${idle[@]}" scripts/test.sh _background "$program" &
    background=$!
}

stop_background() {
    [[ -z $background ]] || kill -- "-$background" 2>/dev/null || true
    background=
}

# Runs a part of the background in a process of its own, and writes its output and its outcome to files.
recorded() { # NAME ARGUMENT...
    local outcome=0
    scripts/test.sh "_$1" "${@:2}" >"$logs/$1.out" 2>&1 || outcome=$?
    echo "$outcome" >"$logs/$1.outcome"
}

# Prints the output of a command that runs in the background, and waits for its end.
await() { # NAME
    tail -n +1 -F "$logs/$1.out" 2>/dev/null &
    local printer=$!
    while [[ ! -e $logs/$1.outcome ]] && kill -0 "$background" 2>/dev/null; do sleep 1; done
    sleep 1
    kill "$printer" 2>/dev/null || true
    [[ $(cat "$logs/$1.outcome") == 0 ]]
}

simulate() {
    if [[ -n $background ]]; then await simulation; else run_simulation "$(simulator)"; fi
}

e2e() {
    local integration
    mapfile -t integration < <(tests_in tests/tests examples/tests)
    workspace test "${integration[@]}" -- --nocapture --test-threads 1
}

# Runs the shell blocks of README.md on the programs that `build` built.
readme() {
    PROFILE=$profile CARGO=true scripts/readme.sh
}

outsider() {
    echo "--- cargo test of the outsider"
    CARGO_TARGET_DIR=$target cargo test --locked --manifest-path tests/outsider/Cargo.toml
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

# Installs one service, and starts one node and a cluster of it. Prints how long it took.
start_service() {
    local service=$1 nodes=$2 began=$SECONDS one
    "${single[@]}" install "$service" || return
    echo "--- install $service: $((SECONDS - began)) s"
    began=$SECONDS
    "${single[@]}" start "$service" 1 &
    one=$!
    if ! "${cluster[@]}" start "$service" "$nodes"; then
        wait "$one" || true
        return 1
    fi
    wait "$one" || return
    echo "--- start $service: $((SECONDS - began)) s"
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
    if start_service redis 6; then
        export CHAT_TEST_REDIS=redis://127.0.0.1:6379
        export CHAT_TEST_REDIS_CLUSTER="redis-cluster://$net.1:6379,$net.2:6379"
    else
        not_run Redis || outcome=$?
    fi
    if start_service kafka 3; then
        export CHAT_TEST_KAFKA="kafka://127.0.0.1:9092/test?replication=1"
        export CHAT_TEST_KAFKA_CLUSTER="kafka://$net.1:9092,$net.2:9092/test?replication=3"
    else
        not_run Kafka || outcome=$?
    fi
    if start_service cassandra 3; then
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

# Runs the conformance suites on real services. Those of Cassandra run beside the others, because they wait for the
# service more than they use a core.
suites_of_services() {
    local outcome=0 cassandra
    workspace test --test cassandra -- --nocapture --test-threads 1 >"$logs/cassandra.out" 2>&1 &
    cassandra=$!
    workspace test --test redis --test kafka -- --nocapture --test-threads 1 || outcome=$?
    wait "$cassandra" || outcome=$?
    cat "$logs/cassandra.out"
    return "$outcome"
}

# Runs the conformance suites on real services, then the cluster tests over three gateways and two routers.
services() {
    local outcome=0 began took faults
    start_services || outcome=$?
    suites_of_services || outcome=$?
    # Faults of multi-node services come first. Then these services are stopped to make room. Each kind comes once.
    began=$SECONDS
    workspace test --test cluster under_combined_faults -- --nocapture --test-threads 1 || outcome=$?
    took=$((SECONDS - began))
    stop_clusters
    # About ten faults took that time. The rest of the budget sets the number of faults of nodes: 7 kinds, 1 to 3 times.
    faults=$((took > 0 ? (FAULT_SECONDS - took) * 10 / took : 21))
    faults=$((faults < 7 ? 7 : faults > 21 ? 21 : faults))
    echo "budget $FAULT_SECONDS s, combined faults took $took s: $faults faults of nodes"
    CHAT_TEST_CLUSTER_FAULTS=$faults workspace test --test cluster --test data_migration --test reconnect_storm \
        --test operations --test secured_services --test restored_cluster -- --nocapture --test-threads 1 || outcome=$?
    stop_single
    return "$outcome"
}

# Tests that take too long for each change (an hour and a half): each fault of services alone, a hundred faults of
# all kinds in pairs, stops of up to a minute, and fifty shard owners that are stopped past their lease.
faults() {
    local outcome=0
    workspace build --bins --tests
    start_services || outcome=$?
    workspace test --test cluster while_services -- --nocapture --test-threads 1 || outcome=$?
    CHAT_TEST_CLUSTER_FAULTS=50 CHAT_TEST_CLUSTER_MAX_STOP=60 \
        workspace test --test cluster under_combined_faults -- --nocapture --test-threads 1 || outcome=$?
    stop_clusters
    CHAT_TEST_CLUSTER_FAULTS=50 CHAT_TEST_CLUSTER_KINDS="stopped past" \
        workspace test --test cluster while_nodes -- --nocapture --test-threads 1 || outcome=$?
    stop_single
    return "$outcome"
}

# One build of all targets. `--release`, because the profile in fuzz/Cargo.toml sets which assertions are enabled. By
# default without a sanitizer: this code has no `unsafe`, and its dependencies are not what the targets test.
cargo_fuzz() { # COMMAND OPTION...
    CARGO_TARGET_DIR=$target/fuzz cargo +nightly fuzz "$1" --release --sanitizer "${FUZZ_SANITIZER:-none}" \
        --codegen-units 16 --fuzz-dir fuzz "${@:2}"
}

build_fuzz() {
    echo "--- cargo fuzz build"
    cargo_fuzz build
}

# The targets run at the same time, because each has one thread: with seven targets, FUZZ_SECONDS of a core are 7/2 of
# that time on two cores.
fuzz() {
    if [[ -n $background ]]; then await fuzz-build; else build_fuzz; fi
    local name pids=() names=(frame session codec recovery suite_message suite_bundle link_payload) seconds failed=0 cores
    cores=$(nproc)
    seconds=$((cores >= ${#names[@]} ? ${FUZZ_SECONDS:-30} : ${FUZZ_SECONDS:-30} * ${#names[@]} / cores))
    for name in "${names[@]}"; do
        cargo_fuzz run "$name" -- -max_total_time="$seconds" -rss_limit_mb=2048 -print_final_stats=1 \
            >"$logs/fuzz-$name.out" 2>&1 &
        pids+=($!)
    done
    for name in "${!names[@]}"; do
        echo "--- ${names[$name]}"
        if wait "${pids[$name]}"; then
            grep -a "^Done\|peak_rss" "$logs/fuzz-${names[$name]}.out"
        else
            failed=1
            grep -a -A 3 "panicked\|ERROR:" "$logs/fuzz-${names[$name]}.out" || true
            tail -n 40 "$logs/fuzz-${names[$name]}.out"
        fi
    done
    return "$failed"
}

setup() {
    scripts/setup.sh all
}

# api.sh and evidence.sh use the functions.
[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0

mkdir -p "$logs"
case ${1:-all} in
    fast)
        step fast
        exit
        ;;
    faults)
        step setup
        step faults
        exit
        ;;
    only)
        shift
        begin_times
        for name in "$@"; do step "$name"; done
        print_times
        exit
        ;;
    _background)
        # Where the kernel groups tasks by session, the priority of this session counts, and not that of its tasks.
        echo 19 2>/dev/null >/proc/self/autogroup || true
        recorded simulation "$2"
        recorded fuzz-build
        exit
        ;;
    _simulation)
        run_simulation "$2"
        exit
        ;;
    _fuzz-build)
        build_fuzz
        exit
        ;;
    all) ;;
    *)
        echo "usage: scripts/test.sh [fast | faults | only STEP...]" >&2
        exit 2
        ;;
esac
begin_times
trap 'stop_background; print_times' EXIT
step setup
step lint
step docs
step api
step wasm
step build
step unit
start_background
step services
step e2e
step readme
step outsider
step simulate
step fuzz
trap - EXIT
print_times
echo "everything passed in $SECONDS s"
