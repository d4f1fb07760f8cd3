#!/bin/sh
# Builds the software device and puts its three libraries into DIR, under every name that programs look for:
#   kernels/softgpu/install.sh DIR;  LD_LIBRARY_PATH=DIR some-cuda-program
# Other names are links to one file: a process that asks for libcuda under two names must get one device, not two.
# SOFTGPU_BUILD replaces what cargo is told to build: within a larger build, so that dependencies are not compiled twice.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 64; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
# shellcheck disable=SC2086 # Several arguments.
cargo build --locked ${SOFTGPU_BUILD:--p softgpu-driver -p softgpu-cublaslt -p softgpu-nccl}
built=${CARGO_TARGET_DIR:-target}/debug

# install FILE NAME...: copies beside and renames, so that a process that uses the old file keeps it whole.
install() {
    file=$1
    shift
    cp "$built/$file" "$directory/.$file.new"
    mv "$directory/.$file.new" "$directory/$file"
    for name in "$@"; do ln -sf "$file" "$directory/$name"; done
}

install libcuda.so libcuda.so.1
install libcublasLt.so libcublasLt.so.13 libcublasLt.so.12
install libnccl.so libnccl.so.2
