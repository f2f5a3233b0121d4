#!/usr/bin/env bash
# Lists the public items of the libraries, from the JSON output of rustdoc.
#
#   scripts/api.sh write          writes docs/api/CRATE.txt
#   scripts/api.sh check          fails with a difference if a listing in docs/api is old
#   scripts/api.sh count [REV]    prints the number of items of each crate, here or of another commit
#
# Only rustdoc runs with unstable options. So cargo uses what it compiled for clippy and for the documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/test.sh
crates=(chat-core chat-client chat-signal chat-server chat-store chat-testing chat-transport)
temporary=$(mktemp -d)
tree=

cleanup() {
    [[ -z $tree ]] || git worktree remove --force "$tree"
    rm -rf "$temporary"
}
trap cleanup EXIT

# Runs `cargo doc` with these arguments. Writes JSON to the `doc` directory of the build.
document() {
    printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n' >"$temporary/rustdoc"
    chmod +x "$temporary/rustdoc"
    RUSTDOC=$temporary/rustdoc RUSTDOCFLAGS="-Z unstable-options --output-format json" "$@"
}

json_of() { echo "$1/doc/${2//-/_}.json"; }

# Prints the number of items of each crate that a build documented.
counts() { # BUILD-DIRECTORY
    local crate file
    for crate in "${crates[@]}"; do
        file=$(json_of "$1" "$crate")
        [[ ! -f $file ]] || echo "$crate: $(node scripts/api.mjs --count "$file")"
    done
}

here() {
    document workspace doc --no-deps --features chat-core/sim
}

# The libraries of another commit, with all features: the same items as all features of the workspace.
elsewhere() { # REV
    local crate packages=()
    git worktree add --quiet --detach "$temporary/tree" "$1"
    tree=$temporary/tree
    for crate in "${crates[@]}"; do
        ! grep -rqs "^name = \"$crate\"" --include=Cargo.toml "$tree" || packages+=(-p "$crate")
    done
    (cd "$tree" && CARGO_TARGET_DIR=$target/api-$1 document cargo doc --locked --no-deps --all-features "${packages[@]}")
    counts "$target/api-$1"
}

case ${1:-} in
    write)
        here
        mkdir -p docs/api
        for crate in "${crates[@]}"; do
            node scripts/api.mjs "$(json_of "$target" "$crate")" >"docs/api/$crate.txt"
        done
        counts "$target"
        ;;
    check)
        here
        outcome=0
        for crate in "${crates[@]}"; do
            if [[ ! -f docs/api/$crate.txt ]]; then
                echo "api: docs/api/$crate.txt does not exist, so changes of $crate are unchecked (make api)"
            elif ! diff -u "docs/api/$crate.txt" <(node scripts/api.mjs "$(json_of "$target" "$crate")"); then
                echo "api: the public items of $crate changed: run \`make api\` and review the difference"
                outcome=1
            fi
        done
        counts "$target"
        exit "$outcome"
        ;;
    count)
        if [[ -n ${2:-} ]]; then
            elsewhere "$2"
        else
            here >&2
            counts "$target"
        fi
        ;;
    *)
        echo "usage: scripts/api.sh write | check | count [REV]" >&2
        exit 2
        ;;
esac
