#!/usr/bin/env bash
# Installs the missing tools of the build and the tests: protoc, Node, cargo tools, a Rust target.
set -euo pipefail
want=${1:-all}

apt() {
    export DEBIAN_FRONTEND=noninteractive
    if [ ! -e /tmp/.chat-apt-updated ]; then apt-get update -qq && touch /tmp/.chat-apt-updated; fi
    apt-get install -y -qq "$@" >/dev/null
}

# Installs a cargo tool. It runs for seconds and compiles for minutes: without optimisation it compiles in half the time.
tool() {
    local began=$SECONDS
    command -v "$1" >/dev/null && return
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --quiet --debug "$1"
    echo "--- install $1: $((SECONDS - began)) s"
}

command -v protoc >/dev/null || apt protobuf-compiler
[ "$want" = protoc ] && exit 0

command -v cc >/dev/null || apt build-essential
command -v node >/dev/null || apt nodejs npm
command -v clang >/dev/null || apt clang
command -v strace >/dev/null || apt strace
pkg-config --atleast-version=3 libcrypto 2>/dev/null || apt pkg-config libssl-dev
command -v ip >/dev/null || apt iproute2
tool cargo-deny
tool cargo-fuzz
rustup target list --installed | grep -q wasm32-unknown-unknown || rustup target add wasm32-unknown-unknown
rustup toolchain list | grep -q nightly || rustup toolchain install nightly --profile minimal
