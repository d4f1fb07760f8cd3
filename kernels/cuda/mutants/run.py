#!/usr/bin/env python3
"""Runs seeded faults in the CUDA kernels against the tests that must catch them (`make mutants`).

Each mutant of mutants.toml changes one place of a kernel. Every file that the change reaches is compiled to PTX, put before
the backend (BALLAST_CUDA_PTX), and the named tests run. Caught means: some test failed, or did not end in time. The same
tests pass before on kernels without a fault, or nothing is concluded. The last line says how many were caught:
`N passed, N failed`. Exit status: 0 all caught; 1 some were not; 69 the compiler cannot be had.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent
sys.path.insert(0, str(KERNELS))
import build  # noqa: E402
import toolchain  # noqa: E402

SUITES = ("cuda", "cuda_bits")
SECONDS = 600  # A mutant that keeps a test busy for longer hangs.


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, in a word and a line."""

    caught: bool
    how: str


class Bench:
    """Compiler, tests and device."""

    def __init__(self, arguments, scratch):
        self.nvcc = toolchain.toolkit(arguments.cache.resolve()) / "bin" / "nvcc"
        # Copies: a build meanwhile must not change them.
        self.tests = [shutil.copy(program, scratch) for program in test_programs(arguments.cargo)]
        self.environment = dict(os.environ, LD_LIBRARY_PATH=str(arguments.lib.resolve()))

    def compile(self, sources, file, into):
        """PTX of all of `sources` that include `file`, into a directory; the compiler's complaint, or None."""
        for source in sorted(sources.glob("*.cu")):
            if file not in (path.name for path in build.included(source)):
                continue
            command = [self.nvcc, *build.COMPILE[1:], source.name, "-o", into / f"{source.stem}.ptx"]
            done = subprocess.run(command, cwd=sources, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                return done.stdout.strip()
        return None

    def run(self, names, ptx):
        """Runs the tests whose names contain one of `names`: those that passed, and those that failed."""
        passed, failed = [], []
        for program in self.tests:
            command = [program, *names, "--test-threads=1"]
            environment = dict(self.environment, **({"BALLAST_CUDA_PTX": str(ptx)} if ptx else {}))
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                failed.append("no end in sight")
                continue
            said = done.stdout
            passed += re.findall(r"^test (\S+) \.\.\. ok$", said, re.MULTILINE)
            failures = re.findall(r"^    (\S+)$", said.rpartition("\nfailures:\n")[2], re.MULTILINE)
            failed += failures or ([f"the program ended with {done.returncode}"] if done.returncode else [])
        return passed, failed


def test_programs(cargo):
    """Builds the tests; their programs."""
    command = [cargo, "test", "--locked", "-p", "ballast-kernels", "--features", "cuda,reference", "--no-run",
               "--message-format=json", *(word for suite in SUITES for word in ("--test", suite))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [message["executable"] for message in messages if message.get("executable")]


def mutated(mutant, scratch):
    """A copy of the kernels with the fault in it."""
    sources = scratch / "sources"
    shutil.copytree(KERNELS, sources, ignore=lambda _, names: [name for name in names if not name.endswith((".cu", ".cuh"))])
    path = sources / mutant["file"]
    text = path.read_text()
    if text.count(mutant["search"]) != 1:
        raise SystemExit(f"run.py: {mutant['name']}: {text.count(mutant['search'])} times in {mutant['file']}, not once")
    path.write_text(text.replace(mutant["search"], mutant["replace"]))
    return sources


def judge(bench, mutant):
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        scratch = Path(scratch)
        sources, ptx = mutated(mutant, scratch), scratch / "ptx"
        ptx.mkdir()
        complaint = bench.compile(sources, mutant["file"], ptx)
        if complaint is not None:
            return Outcome(False, f"does not compile: {complaint.splitlines()[0]}")
        _, failed = bench.run(mutant["tests"], ptx)
    return Outcome(bool(failed), f"caught by {failed[0]}" if failed else "SURVIVED")


def main():
    parser = argparse.ArgumentParser(description="Runs seeded faults in the CUDA kernels against their tests.")
    parser.add_argument("--lib", type=Path, required=True, help="directory of the device's libraries")
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--cache", type=Path, default=toolchain.default_cache(), help="directory of the compiler")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="mutants at once")
    parser.add_argument("--only", nargs="+", default=[""], help="mutants whose file or name contains one of these")
    arguments = parser.parse_args()
    mutants = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]
    mutants = [mutant for mutant in mutants
               if any(part in mutant["file"] + " " + mutant["name"] for part in arguments.only)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        try:
            return report(Bench(arguments, scratch), mutants, arguments.jobs)
        except toolchain.Unavailable as error:
            print(f"run.py: the CUDA compiler cannot be had: {error}", file=sys.stderr)
            return build.UNAVAILABLE


def report(bench, mutants, jobs):
    """Runs all mutants and prints what became of them; the exit status."""
    wanted = sorted({name for mutant in mutants for name in mutant["tests"]})
    passed, failed = bench.run(wanted, None)
    idle = [name for name in wanted if not any(name in test for test in passed)]
    if failed or idle:
        print(f"run.py: on kernels without a fault these fail: {failed}; these are not there: {idle}", file=sys.stderr)
        return 1
    caught = 0
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for mutant, outcome in zip(mutants, pool.map(lambda mutant: judge(bench, mutant), mutants)):
            caught += outcome.caught
            print(f"{mutant['file']:24} {mutant['name']:52} {outcome.how:40} {mutant['why']}", flush=True)
    print(f"{caught} passed, {len(mutants) - caught} failed")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
