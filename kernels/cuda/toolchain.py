"""The pinned CUDA compiler: fetched once into a cache from the wheels of requirements.txt."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
VERSION = "13.0.88"


class Unavailable(Exception):
    """The compiler cannot be had on this machine; the message says what to do about it."""


def default_cache():
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ballast" / f"cuda-{VERSION}"


def toolkit(cache):
    """The toolkit's directory (bin, include, nvvm), fetched into `cache` unless it is there."""
    if not shutil.which("g++"):
        raise Unavailable("nvcc needs a host C++ compiler and there is no g++: install it (on Debian, apt install g++)")
    if not is_complete(cache):
        fetch(cache)
    root = cache / "nvidia" / "cu13"
    if not (root / "bin" / "nvcc").is_file():
        raise Unavailable(f"{root}/bin/nvcc is missing though {cache} is complete: remove {cache} and try again")
    return root


def is_complete(cache):
    """Whether `cache` holds exactly the wheels that requirements.txt names now."""
    fetched = cache / REQUIREMENTS.name
    return fetched.is_file() and fetched.read_bytes() == REQUIREMENTS.read_bytes()


def fetch(cache):
    """Installs the wheels beside `cache` and renames at the end, so that an interrupted fetch is simply repeated."""
    print(f"fetching the CUDA {VERSION} compiler into {cache} (about 110 MB)", file=sys.stderr)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=f".{cache.name}-") as scratch:
        environment, wheels = Path(scratch) / "pip", Path(scratch) / "toolkit"
        # A virtual environment of its own, because a system's Python may refuse to install or hold no pip.
        run([sys.executable, "-m", "venv", environment],
            "cannot make a virtual environment (on Debian, apt install python3-venv)")
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", REQUIREMENTS, "--target", wheels],
            "pip cannot fetch the wheels of kernels/cuda/requirements.txt: is there a network, or a mirror that "
            "PIP_INDEX_URL names?")
        shutil.copy(REQUIREMENTS, wheels / REQUIREMENTS.name)
        if cache.exists():
            os.rename(cache, Path(scratch) / "old")
        os.rename(wheels, cache)


def run(command, otherwise):
    """Runs a command; a failure becomes `otherwise`, with the last lines of what the command said."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        said = "\n".join("    " + line for line in done.stdout.strip().splitlines()[-5:])
        raise Unavailable(f"{otherwise}\n{said}")
