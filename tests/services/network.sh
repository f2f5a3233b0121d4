#!/usr/bin/env bash
# Creates machines for services.sh: network namespaces on one bridge. The network between any two can be cut.
# Needs root and iproute2. Machine i has the address NET.i; machine 0 is the host, NET.254.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: network.sh COMMAND

  up N          create N machines; CHAT_SERVICES_NETNS is the prefix of their names
  down          end all processes on the machines and remove the machines
  cut A B       silently drop all packets between A and B
  heal A B      reconnect A and B

environment: CHAT_SERVICES_NETNS [chat], CHAT_SERVICES_NET [10.77.7]
HELP
}

PREFIX=${CHAT_SERVICES_NETNS:-chat}
NET=${CHAT_SERVICES_NET:-10.77.7}
BRIDGE=${PREFIX}br

address() { if (($1 == 0)); then echo "$NET.254"; else echo "$NET.$1"; fi; }
on() { # MACHINE COMMAND...
  local machine=$1
  shift
  if ((machine == 0)); then "$@"; else ip netns exec "$PREFIX$machine" "$@"; fi
}
device() { if (($1 == 0)); then echo "$BRIDGE"; else echo eth0; fi; }

up() {
  local i
  ip link add "$BRIDGE" type bridge
  ip addr add "$NET.254/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  for ((i = 1; i <= $1; i++)); do
    ip netns add "$PREFIX$i"
    ip link add "$PREFIX-$i" type veth peer name eth0 netns "$PREFIX$i"
    ip link set "$PREFIX-$i" master "$BRIDGE" up
    on "$i" ip link set lo up
    on "$i" ip addr add "$NET.$i/24" dev eth0
    on "$i" ip link set eth0 up
  done
}

down() {
  local name
  for name in $(ip netns list | awk '{print $1}' | grep "^$PREFIX[0-9]"); do
    ip netns pids "$name" | xargs -r kill -9 || true
    ip netns delete "$name"
    # The kernel keeps the namespace until its last process has ended. Free the name of its link now.
    ip link delete "$PREFIX-${name#"$PREFIX"}" 2>/dev/null || true
  done
  ip link delete "$BRIDGE" 2>/dev/null || true
}

# Sends frames to a MAC address that no machine has: they are lost, as with a broken cable.
cut() {
  on "$1" ip neigh replace "$(address "$2")" lladdr 02:00:00:00:00:99 dev "$(device "$1")" nud permanent
  on "$2" ip neigh replace "$(address "$1")" lladdr 02:00:00:00:00:99 dev "$(device "$2")" nud permanent
}

heal() {
  on "$1" ip neigh del "$(address "$2")" dev "$(device "$1")"
  on "$2" ip neigh del "$(address "$1")" dev "$(device "$2")"
}

case ${1:-} in
  up) up "$2" ;;
  down) down ;;
  cut) cut "$2" "$3" ;;
  heal) heal "$2" "$3" ;;
  *) usage; exit 2 ;;
esac
