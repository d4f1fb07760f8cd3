#!/usr/bin/env bash
# A Python environment with moto, a server that speaks S3: the tests of remote stores run against it.
#
#   scripts/make-s3-server.sh [DIR]     DIR: ${XDG_CACHE_HOME:-~/.cache}/ballast/s3-server (about 100 MB)
#
# Prints the interpreter's path, for BALLAST_TEST_S3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(realpath -m "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/ballast/s3-server}")
requirements=$here/s3-server-requirements.txt

if ! cmp --silent "$requirements" "$dir/complete"; then
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements" >&2
    cp "$requirements" "$dir/complete"
fi
echo "$dir/bin/python"
