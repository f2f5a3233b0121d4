#!/usr/bin/env bash
# Measures the figures of docs/evidence: each part writes docs/evidence/PART.txt with its start, end and duration.
#
#   scripts/evidence.sh           the parts without a result for these sources, so an interrupted run continues
#   scripts/evidence.sh PART...   these parts, again
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/test.sh
out=docs/evidence
parts=(simulate mutants digest conformance storm flood fuzz wasm api bench groups ci)
# 201,600 schedules of eight kinds.
: "${EVIDENCE_SCHEDULES:=25200}" "${EVIDENCE_BENCH_RUNS:=3}"
# The commit whose public items are the comparison.
before=4123e12

part_simulate() {
    SIM_SCHEDULES=$EVIDENCE_SCHEDULES core --test simulation no_schedule -- --nocapture
    core --test simulation seed -- --nocapture --skip digest
}

part_mutants() {
    SIM_SEARCH=1 core --test simulation every_mutant -- --nocapture
    core --test mutants -- --nocapture
    # The mutants that a unit test beside the rule detects.
    core --lib
}

part_digest() {
    core --test simulation digest -- --nocapture
}

part_conformance() {
    local integration outcome=0
    core --test memory_store
    mapfile -t integration < <(tests_in chat-*/tests | grep -vxE -- '--test=(simulation|mutants|engine|memory_store)')
    workspace test "${integration[@]}"
    start_services || outcome=$?
    workspace test --test redis --test kafka --test cassandra -- --nocapture --test-threads 1 || outcome=$?
    stop_clusters
    stop_single
    return "$outcome"
}

part_storm() {
    local outcome=0
    start_services || outcome=$?
    stop_clusters
    CHAT_TEST_CROWD=2000 workspace test --test reconnect_storm -- --nocapture --test-threads 1 || outcome=$?
    stop_single
    return "$outcome"
}

part_fuzz() {
    FUZZ_SECONDS=600 FUZZ_SANITIZER=address fuzz
}

part_flood() {
    workspace build --bins
    FLOOD_SECONDS=60 workspace test --test flood -- --nocapture --test-threads 1
}

part_wasm() {
    wasm
    echo "chat-core and chat-client (without the local store) compile for wasm32-unknown-unknown"
}

part_api() {
    [[ -f $out/api-before.txt ]] || scripts/api.sh count "$before" >"$out/api-before.txt"
    echo "public items of commit $before:"
    cat "$out/api-before.txt"
    echo "public items now:"
    scripts/api.sh count
}

part_bench() {
    local run
    cargo build --release --locked -p chat-server-ref -p chat-tests
    for ((run = 1; run <= EVIDENCE_BENCH_RUNS; run++)); do
        echo "run $run of $EVIDENCE_BENCH_RUNS:"
        "$target/release/bench"
    done
}

# Groups and channels beside a bare broadcaster, and the cost of a group of many members.
part_groups() {
    cargo build --release --locked -p chat-server-ref -p chat-tests
    # A connection of each reader, in the driver and in the server.
    ulimit -n 20000
    "$target/release/bench" group 200
    "$target/release/bench" group 500
    "$target/release/bench" channel 9900
    "$target/release/bench" members 1024 4
}

# The minutes of each step of `make test`: of the last complete run of this commit, or of a new run.
part_ci() {
    if ! grep -q "^commit $(git rev-parse --short HEAD)," "$logs/times.txt" 2>/dev/null \
        || grep -q '^ *failed ' "$logs/times.txt" || ! grep -q ' simulate$' "$logs/times.txt"; then
        scripts/test.sh >"$logs/evidence.out" 2>&1 || {
            tail -n 60 "$logs/evidence.out"
            return 1
        }
    fi
    cat "$logs/times.txt"
}

# Identifies the sources without documents: a commit of figures does not make the figures old.
sources() {
    { git ls-files -s -- . ':!docs' ':!*.md'; git diff HEAD -- . ':!docs' ':!*.md'; } | sha256sum | cut -c 1-16
}

# Removes paths of this machine, addresses of registries and lines about compilation.
cleaned() {
    grep -avE '^ *(Compiling|Checking|Documenting|Downloaded|Downloading|Updating|Locking|Blocking|Fresh|Adding)\b|^ *$' \
        | sed -E -e "s|$PWD|.|g" -e "s|$target|target|g" -e "s|${CARGO_HOME:-$HOME/.cargo}|CARGO_HOME|g" -e "s|$HOME|HOME|g" \
            -e "s|${TMPDIR:-/tmp}/[^ ]*|TMP|g" -e 's|(sparse\+)?https?://[^ )`"]+|URL|g' -e "s|\b$(uname -n)\b|HOST|g" \
            -e 's|-[0-9a-f]{16}\)|)|' -e 's/[[:space:]]+$//' || true
}

run_part() {
    local name=$1 raw outcome=passed began=$SECONDS start
    raw=$(mktemp)
    start=$(date -u '+%F %T')
    echo "=== $name: start $start UTC"
    # In a process of its own: the shell ignores `set -e` in functions whose outcome is tested.
    scripts/evidence.sh _part "$name" 2>&1 | tee "$raw" || outcome=failed
    {
        echo "part      $name"
        echo "commit    $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- . ':!docs/evidence' || echo ", with changes")"
        echo "sources   $(sources)"
        echo "machine   $(nproc) cores, $(awk '/^MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo), $(uname -sm), $(rustc -V | cut -d ' ' -f 1,2)"
        echo "start     $start UTC"
        echo "end       $(date -u '+%F %T') UTC"
        echo "duration  $((SECONDS - began)) s"
        echo "outcome   $outcome"
        echo
        cleaned <"$raw"
    } >"$out/$name.txt"
    rm "$raw"
    echo "=== $name: end $(date -u '+%F %T') UTC, $((SECONDS - began)) s, $outcome"
    [[ $outcome == passed ]]
}

# Whether a part passed with these sources.
is_done() {
    grep -qs '^outcome   passed' "$out/$1.txt" && grep -qs "^sources   $(sources)" "$out/$1.txt"
}

mkdir -p "$out" "$logs"
if [[ ${1:-} == _part ]]; then
    "part_$2"
    exit
fi
scripts/setup.sh all
failed=()
if (($# > 0)); then
    for name in "$@"; do
        declare -F "part_$name" >/dev/null || {
            echo "usage: scripts/evidence.sh [PART...], PART is one of: ${parts[*]}" >&2
            exit 2
        }
    done
    for name in "$@"; do run_part "$name" || failed+=("$name"); done
else
    for name in "${parts[@]}"; do
        if is_done "$name"; then
            echo "=== $name: passed before with these sources ($out/$name.txt)"
        else
            run_part "$name" || failed+=("$name")
        fi
    done
fi
((${#failed[@]} == 0)) || {
    echo "these parts failed: ${failed[*]}" >&2
    exit 1
}
