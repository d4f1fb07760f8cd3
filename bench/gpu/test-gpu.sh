#!/bin/sh
# Everything that Ballast checks on a GPU, on a machine that has one and Python 3, and need have nothing else: the tests
# of the CUDA backend, whole models, `ballast` processes, and training throughput. Lies at the root of a bundle of `make
# gpu-bundle`, and needs nothing else of the repository.
#
#   ./test-gpu.sh [--quick] [--only NAME]... [--results FILE] [--peft-python PYTHON]      (--help describes them)
#
# Results are JSON lines on standard output, all else goes to standard error. Exit code: 0 when all that ran passed, 1
# when something failed, 64 for wrong arguments, 69 when this machine lacks what it takes: a usable GPU, a library,
# Python 3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if ! command -v python3 > /dev/null; then
    echo "test-gpu: unavailable: python3 is not found: install Python 3.9 or later" >&2
    exit 69
fi
exec python3 "$here/bench/gpu/run_all.py" "$@"
