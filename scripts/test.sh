#!/usr/bin/env bash
# Everything CI checks. Each step says its name and how long it took.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
profile=${PROFILE:-sim}

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
    cargo clippy --locked --workspace --all-targets \
        --features chat-core/sim,chat-core/conformance,chat-store/sqlite -- -D warnings
    cargo deny --locked check bans licenses sources
}

docs() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps \
        --features chat-core/sim,chat-core/conformance,chat-store/sqlite
}

# Unit tests, conformance suites and doc tests, with the binaries that the end-to-end tests start.
unit() {
    cargo build --locked --profile "$profile" -p chat-server-ref -p chat-cli
    cargo test --locked --profile "$profile" --workspace --exclude chat-tests \
        --features chat-core/sim,chat-core/conformance,chat-store/sqlite -- \
        --skip no_schedule_breaks_a_law --skip every_mutant_is_killed
    cargo run -q --locked --profile "$profile" -p chat-tests --bin generate-wire -- --check
}

simulate() {
    SIM_SCHEDULES=${SIM_SCHEDULES:-100000} cargo test --locked --profile "$profile" -p chat-core \
        --features sim,conformance --test simulation -- --nocapture --test-threads 1
}

e2e() {
    cargo test --locked --profile "$profile" -p chat-tests -- --nocapture --test-threads 1
}

wasm() {
    cargo check --locked --target wasm32-unknown-unknown -p chat-core
    cargo check --locked --target wasm32-unknown-unknown -p chat-client --no-default-features
}

outsider() {
    CARGO_TARGET_DIR=$PWD/target cargo test --locked --manifest-path tests/outsider/Cargo.toml
}

fuzz() {
    export CARGO_TARGET_DIR=$PWD/target/fuzz
    cargo +nightly fuzz build --fuzz-dir fuzz
    for target in frame session recovery; do
        cargo +nightly fuzz run --fuzz-dir fuzz "$target" -- \
            -max_total_time="${FUZZ_SECONDS:-60}" -rss_limit_mb=2048 -print_final_stats=1 2>&1 | tail -n 8
    done
}

step setup scripts/setup.sh all
step lint lint
step docs docs
step wasm wasm
step unit unit
step outsider outsider
step simulate simulate
step e2e e2e
step fuzz fuzz
echo "everything passed in $SECONDS s"
