#!/usr/bin/env python3
"""Builds what test-gpu.sh needs on a machine with a GPU and no Rust: `make gpu-bundle`.

    bundle.py --out DIR [--cargo CARGO]

Makes DIR/ballast-gpu/ and DIR/ballast-gpu.tar.xz (`python3 -m tarfile -e` unpacks it where there is no xz). The
binaries run on any Linux on this kind of processor with the glibc that MANIFEST.json names, or a later one; the kernels
of every compute capability are in them (`make cuda` first).
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile

import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAME = "ballast-gpu"
# What travels where a repository would not.
MOST_BYTES = 60 << 20

PROFILE = "bundle"
PACKAGES = ["ballast-cli", "ballast-e2e", "ballast-kernels", "ballast-worker"]
FEATURES = "ballast-cli/cuda,ballast-e2e/cuda,ballast-kernels/reference"
BINARIES = ["ballast", "dump_samples"]
# What is copied, as it lies in the repository: what tests and benchmark read, and themselves.
FILES = [
    "LICENSE",
    "bench/gpu",
    "bench/peft_model.py",
    "bench/peft_train.py",
    "e2e/fixtures",
    "examples/data/LICENSE-GSM8K",
    "examples/data/gsm8k-train-400.jsonl",
    "worker/tests/fixtures/peft-tiny/model",
]


def tests():
    """The test executables that need a device: name, directory of the package, filter. A new file is one of them."""
    whole = lambda package: [(path.stem, package, "") for path in sorted((ROOT / package / "tests").glob("cuda*.rs"))]
    return [*whole("kernels"), ("training", "worker", "whole_model::"), *whole("e2e")]


def build(cargo):
    """Builds everything in one go; the paths of the executables by kind and name. One invocation, since two of them
    would resolve other features and compile every dependency twice."""
    command = [cargo, "build", "--locked", "--profile", PROFILE, "--message-format=json-render-diagnostics"]
    for package in PACKAGES:
        command += ["-p", package]
    command += ["--features", FEATURES]
    for name in BINARIES:
        command += ["--bin", name]
    for name, _, _ in tests():
        command += ["--test", name]
    print("+", *command, file=sys.stderr, flush=True)
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = {}
    for message in map(json.loads, lines):
        if message["reason"] == "compiler-artifact" and message["executable"]:
            found[message["target"]["kind"][0], message["target"]["name"]] = pathlib.Path(message["executable"])
    return found


def assemble(directory, built):
    """Fills the bundle's directory; the tests as the manifest lists them."""
    (directory / "bin").mkdir(parents=True)
    (directory / "tests").mkdir()
    for name in BINARIES:
        shutil.copy(built["bin", name], directory / "bin" / name)
    listed = []
    for name, package, filter in tests():
        executable = f"tests/{name}"
        shutil.copy(built["test", name], directory / executable)
        listed.append({"name": name, "executable": executable, "package": package, "filter": filter})
    for file in FILES:
        source, target = ROOT / file, directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for test in listed:
        (directory / test["package"]).mkdir(exist_ok=True)
    shutil.move(directory / "bench/gpu/test-gpu.sh", directory / "test-gpu.sh")
    return listed


def output(*command):
    """What a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def glibc(executables):
    """The newest version of glibc's symbols that any of them asks for."""
    versions = {version for path in executables for version in re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())}
    return "{}.{}".format(*max(tuple(map(int, version)) for version in versions))


def manifest(directory, listed):
    """What the bundle is and was made from, and the SHA-256 of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    executables = [directory / "bin" / name for name in BINARIES] + [directory / test["executable"] for test in listed]
    nvcc = re.search(r"^nvidia-cuda-nvcc==(\S+)", (ROOT / "kernels/cuda/requirements.txt").read_text(), re.MULTILINE)
    return {
        "version": output(directory / "bin/ballast", "--version").split()[-1],
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "rustc": output("rustc", "--version"),
        "nvcc": nvcc[1],
        "machine": f"{platform.machine()} {platform.system()}",
        "glibc": glibc(executables),
        "tests": listed,
        "files": {str(path.relative_to(directory)): machine.sha256(path) for path in files},
    }


def pack(directory, archive):
    """A compressed tar in which nothing is of this machine or moment."""
    def anonymous(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    unfinished = archive.with_suffix(".unfinished")
    # Every executable has the kernels in it: with this preset's window, each but the first costs next to nothing.
    with tarfile.open(unfinished, "w:xz", preset=9) as tar:
        tar.add(directory, directory.name, filter=anonymous)
    os.replace(unfinished, archive)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--cargo", default="cargo")
    arguments = arguments.parse_args()

    built = build(arguments.cargo)
    directory, archive = arguments.out / NAME, arguments.out / f"{NAME}.tar.xz"
    shutil.rmtree(directory, ignore_errors=True)
    listed = assemble(directory, built)
    (directory / "MANIFEST.json").write_text(json.dumps(manifest(directory, listed), indent=2) + "\n")
    pack(directory, archive)
    size = archive.stat().st_size
    if size > MOST_BYTES:
        archive.unlink()
        sys.exit(f"gpu-bundle: {archive} would be {size} bytes, more than the {MOST_BYTES} that it may be")
    print(f"gpu-bundle: {archive}, {size / 2**20:.1f} MiB of at most {MOST_BYTES >> 20}")


if __name__ == "__main__":
    main()
