#!/usr/bin/env bash
# Checks the dependencies against an advisory database, if there is one: a fresh copy, or the one that an earlier run
# fetched. Otherwise prints that advisories are unchecked, and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
database=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
fetched=fresh
if ! GIT_TERMINAL_PROMPT=0 timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
    fetched="not fetched now"
    if [ -z "$(find "$database" -mindepth 2 -name crates -type d -print -quit 2>/dev/null)" ]; then
        echo "advisories: UNCHECKED, no advisory database can be fetched here and none is stored"
        exit 0
    fi
fi
# The advisories that docs/security.md lists, with our exposure, are accepted: `RUSTSEC-2026-0207, -0208` are two.
config=$(mktemp)
trap 'rm -f "$config"' EXIT
{
    cat deny.toml
    grep -q '^\[advisories\]' deny.toml || {
        echo
        echo "[advisories]"
        echo "ignore = ["
        grep -o 'RUSTSEC-[0-9]\{4\}-[0-9]\{4\}\(, -[0-9]\{4\}\)*' docs/security.md | awk -F ', ' '
            { print "    \"" $1 "\","; for (i = 2; i <= NF; i++) print "    \"" substr($1, 1, 12) $i "\"," }'
        echo "]"
    }
} >"$config"
echo "advisories: checked, database $fetched"
cargo deny --offline --locked --config "$config" check advisories
