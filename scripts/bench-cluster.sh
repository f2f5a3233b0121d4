#!/usr/bin/env bash
# Starts one node of each service, benchmarks a small cluster on them, and stops them.
set -euo pipefail
cd "$(dirname "$0")/.."
services=(env CHAT_SERVICES_DIR="$PWD/target/services" tests/services/services.sh)
scripts/setup.sh protoc
trap '"${services[@]}" stop >/dev/null' EXIT
for service in redis kafka cassandra; do
    "${services[@]}" install "$service"
    "${services[@]}" start "$service" 1
done
export CHAT_TEST_REDIS=redis://127.0.0.1:6379
export CHAT_TEST_KAFKA="kafka://127.0.0.1:9092/test?replication=1"
export CHAT_TEST_CASSANDRA="cassandra://127.0.0.1:9042/test?replication=1"
cargo build --release --locked -p chat-server-ref -p chat-tests --features chat-server-ref/cluster
target/release/bench cluster
