#!/usr/bin/env bash
# Runs the shell blocks of README.md in order, as a user does, and checks the outcome of each. The blocks run in a
# temporary directory with the Makefile and the built programs, on free ports of loopback.
#
#   PROFILE=sim CARGO=true scripts/readme.sh     # programs that `cargo build --profile sim` built; `make` builds nothing
set -euo pipefail
limit=${README_SECONDS:-300}
# `timeout` puts this script and all of its processes in one process group.
[[ -n ${README_LIMITED:-} ]] || exec env README_LIMITED=1 timeout --kill-after=20 "$limit" "$0" "$@"
root=$(cd "$(dirname "$0")/.." && pwd)
profile=${PROFILE:-release}
programs=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")/$profile
for program in chat chat-server-ref; do
    [[ -x $programs/$program ]] || {
        echo "readme: $programs/$program is not built" >&2
        exit 2
    }
done

# Prints the pids of the processes in the group of this script, except for itself and `timeout`.
others() {
    local stat own fields
    read -r -a own <<<"$(sed 's/.*) //' /proc/$$/stat)"
    for stat in /proc/[0-9]*/stat; do
        read -r -a fields <<<"$(sed 's/.*) //' "$stat" 2>/dev/null)"
        stat=${stat#/proc/} stat=${stat%/stat}
        [[ ${fields[2]:-} == "${own[2]}" && ${fields[0]} != Z ]] || continue
        # `timeout`, this script, and the subshell of this function.
        [[ " $PPID $$ $BASHPID " == *" $stat "* ]] || echo "$stat"
    done
}

# Ends every process that this script started, and removes the directory.
cleanup() {
    local outcome=$? pid
    trap '' TERM
    if ((outcome != 0)) && [[ -f server.log ]]; then
        echo "readme: the end of server.log:"
        tail -n 20 server.log
    fi
    for pid in $(others); do kill -9 "$pid" 2>/dev/null || true; done
    cd /
    rm -rf "$directory"
    exit "$outcome"
}

fail() {
    echo "readme: $*" >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: waits until COMMAND passes.
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" 2>/dev/null; do
        ((SECONDS < end)) || fail "$what did not happen in time"
        sleep 0.1
    done
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

listening() { [[ $(grep -c listening server.log) == "$1" ]]; }
lines() { (($(wc -l <"$1") >= $2)); }
contains() { grep -qxF -- "$2" "$1"; }
ended() { ! kill -0 "$1"; }

# The checks: one for each block, in the order of the README.
check_1() { wait_for 30 "the start of the server" listening 1; }

check_2() {
    wait_for 30 "the delivery of the message to Bob" lines bob.txt 1
    [[ $(cat bob.txt) == "alice (message request): hello" ]] || fail "Bob received: $(cat bob.txt)"
}

check_3() {
    wait_for 30 "the restart of the server" listening 2
    wait_for 60 "the delivery of 2,000 messages to Bob" lines bob.txt 2001
    diff <(echo hello; seq 2000) <(sed 's/^alice (message request): //' bob.txt) >/dev/null || fail "Bob's messages are not 1 to 2000, once and in order"
}

check_4() { wait_for 30 "the display of the code" grep -q 'chat link ' code.txt; }

check_5() {
    local file
    for file in bob.txt tablet.txt; do
        wait_for 30 "the delivery to $file" contains "$file" "alice (message request): to both devices"
    done
    sleep 1
    for file in bob.txt tablet.txt; do
        [[ $(grep -cxF "alice (message request): to both devices" "$file") == 1 ]] || fail "$file shows the message twice"
    done
    [[ $(wc -l <bob.txt) == 2002 ]] || fail "Bob's first device has $(wc -l <bob.txt) lines and not 2002"
}

check_6() { wait_for 90 "the end of the server" ended "$(cat target/server.pid)"; }

directory=$(mktemp -d)
# Profiles that are names are in this directory.
export XDG_DATA_HOME=$directory/share
trap cleanup EXIT
trap 'echo "readme: stopped, the limit is $limit s" >&2; exit 1' TERM
cd "$directory"
mkdir target
ln -s "$programs" "target/$profile"
[[ $profile == release ]] || ln -s "$programs" target/release
ln -s "$root/Makefile" "$root/scripts" .
listen=127.0.0.1:$(free_port)
admin=127.0.0.1:$(free_port)
export CHAT_LISTEN=$listen CHAT_ADMIN_LISTEN=$admin CHAT_SERVER=ws://$listen PROFILE=$profile CARGO=${CARGO:-cargo}
unset CARGO_TARGET_DIR CHAT_PROFILE CHAT_TOKEN CHAT_CA CHAT_DATA CHAT_CONFIG MAKEFLAGS MAKELEVEL

count=$(grep -c '^```sh$' "$root/README.md")
checks=$(declare -F | grep -c ' check_[0-9]*$')
((count == checks)) || fail "README.md has $count shell blocks, and scripts/readme.sh has $checks checks"
for ((block = 1; block <= count; block++)); do
    code=$(awk -v wanted="$block" '/^```sh$/ { on = ++n == wanted; next } /^```$/ { on = 0 } on' "$root/README.md")
    began=$SECONDS
    printf '%s\n' "$code" | sed 's/^/$ /'
    eval "$code"
    "check_$block"
    echo "--- README block $block: $((SECONDS - began)) s"
done
left=$(others)
[[ -z $left ]] || echo "readme: these processes still run and are ended now: $(ps -o args= -p "${left//$'\n'/,}" 2>/dev/null || echo "$left")"
echo "readme: $count blocks passed in $SECONDS s"
