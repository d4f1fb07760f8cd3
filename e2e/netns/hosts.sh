#!/bin/sh
# hosts.sh up PREFIX HOSTS switch|wire, hosts.sh down PREFIX: network namespaces PREFIX-1, PREFIX-2, ... with addresses
# 10.98.7.1, .2, ..., joined in one more, PREFIX-switch, so that nothing of this machine's own network is touched. Needs root.
#
# With `switch` a bridge joins them. With `wire` a process in PREFIX-switch does, which can lose and delay what it carries: every
# host's eth0 is a VXLAN tunnel (which the kernel must have) that ends at UDP port 4789 of 10.97.7.254 there. The last byte of a
# host's MAC address is its number.
set -eu
action=$1
prefix=$2

add() {
    host=$1 name=$2
    ip netns add "$prefix-$host"
    ip -n "$prefix-$host" link set lo up
    ip -n "$prefix-$host" link add "$name" type veth peer name "port$host" netns "$prefix-switch"
    ip -n "$prefix-switch" link set "port$host" master switch up
    ip -n "$prefix-$host" link set "$name" up
}

# Frames of at most an MTU: what the kernel leaves to a network card to cut, nobody would.
tunnel() {
    host=$1
    ip -n "$prefix-$host" addr add "10.97.7.$host/24" dev below
    ip -n "$prefix-$host" link add eth0 address "02:00:00:00:00:0$host" type vxlan id 7 dstport 4789 dev below nolearning \
        local "10.97.7.$host" remote 10.97.7.254
    ip -n "$prefix-$host" link set eth0 gso_max_segs 1 up
}

case $action in
up)
    hosts=$3 kind=$4
    ip netns add "$prefix-switch"
    ip -n "$prefix-switch" link add switch type bridge
    ip -n "$prefix-switch" addr add 10.97.7.254/24 dev switch
    ip -n "$prefix-switch" link set switch up
    for host in $(seq "$hosts"); do
        case $kind in
        switch) add "$host" eth0 ;;
        wire) add "$host" below && tunnel "$host" ;;
        esac
        ip -n "$prefix-$host" addr add "10.98.7.$host/24" dev eth0
    done
    ;;
down)
    for name in $(ip netns list | cut -d ' ' -f 1 | grep "^$prefix-"); do
        for process in $(ip netns pids "$name"); do
            kill -KILL "$process" 2>/dev/null || true
        done
        ip netns del "$name"
    done
    ;;
*)
    echo "usage: $0 up PREFIX HOSTS switch|wire, $0 down PREFIX" >&2
    exit 64
    ;;
esac
