#!/bin/sh
# hosts.sh up|down PREFIX: three network namespaces PREFIX-1, -2, -3 with addresses 10.98.7.1, .2, .3 on one switch,
# which is a fourth namespace PREFIX-switch, so that nothing of this machine's own network is touched. Needs root.
set -eu
action=$1
prefix=$2

case $action in
up)
    ip netns add "$prefix-switch"
    ip -n "$prefix-switch" link add switch type bridge
    ip -n "$prefix-switch" link set switch up
    for host in 1 2 3; do
        ip netns add "$prefix-$host"
        ip -n "$prefix-$host" link add eth0 type veth peer name "port$host" netns "$prefix-switch"
        ip -n "$prefix-switch" link set "port$host" master switch up
        ip -n "$prefix-$host" addr add "10.98.7.$host/24" dev eth0
        ip -n "$prefix-$host" link set eth0 up
        ip -n "$prefix-$host" link set lo up
    done
    ;;
down)
    for name in 1 2 3 switch; do
        ip netns del "$prefix-$name" 2>/dev/null || true
    done
    ;;
*)
    echo "usage: $0 up|down PREFIX" >&2
    exit 64
    ;;
esac
