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
    cargo run -q --locked --profile "$profile" -p generate-wire -- --check
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

# One build; `--release` because the profile in fuzz/Cargo.toml says which assertions are on.
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
