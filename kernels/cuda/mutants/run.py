#!/usr/bin/env python3
"""Runs seeded faults in the CUDA backend against the tests that must catch them (`make mutants`).

Each mutant of mutants.toml changes one place of a kernel: every file that the change reaches is compiled to PTX and put before
the backend (BALLAST_CUDA_PTX). Each of host.toml changes one place of kernels/src/cuda: the crate's tests are built anew in a
copy of the workspace, `mutants` in the target directory. Then the named tests run on the software device. Caught means: some
test failed, or did not end in time. The same tests pass before without a fault, or nothing is concluded.

A line a mutant, and a last one: `N passed, N failed`, where passed means caught. Exit status: 0 all caught; 1 some were not; 69
the compiler cannot be had.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent
REPOSITORY = KERNELS.parents[1]
HOST = KERNELS.parent / "src" / "cuda"
sys.path.insert(0, str(KERNELS))
import build  # noqa: E402
import toolchain  # noqa: E402

SUITES = ("cuda", "cuda_bits", "cuda_nccl", "cuda_nccl_faults")
SECONDS = 600  # A mutant that keeps a test busy for longer hangs.
# The files whose kernels a test launches: others need not be compiled to judge a mutant by it.
LAUNCHED = {
    "rows": ("rows",), "norm": ("norm",), "linear": ("lora",), "rotary": ("rotary",), "gated": ("gated",),
    "attention": ("attention", "attention_backward"), "decoding": ("attention_cached",), "head": ("cross_entropy",),
    "optimizer": ("optimizer", "fixed"), "adamw": ("optimizer",), "fixed_point": ("fixed",), "squared_norm": ("fixed",),
    "results_are_rounded": ("rows",),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, in a word and a line."""

    caught: bool
    how: str


class Bench:
    """Compiler, tests and device."""

    def __init__(self, arguments, scratch):
        self.nvcc = toolchain.toolkit(arguments.cache.resolve()) / "bin" / "nvcc"
        self.cargo, self.packages = arguments.cargo, arguments.packages.split()
        self.target = arguments.target.resolve()
        self.workspace = copy_of_workspace(self.target / "mutants")
        # Copies: a build meanwhile must not change them.
        self.tests = [shutil.copy(program, scratch) for program in self.build(REPOSITORY)]
        lib = str(arguments.lib.resolve())
        self.environment = dict(os.environ, LD_LIBRARY_PATH=lib, SOFTGPU_LIB=lib, BALLAST_TEST_DEVICE="ours")

    def build(self, workspace):
        """Builds the tests of a workspace; their programs, or None when they do not compile."""
        command = [self.cargo, "test", "--locked", *self.packages, "--no-run", "--message-format=json",
                   *(word for suite in SUITES for word in ("--test", suite))]
        if workspace != REPOSITORY:
            command += ["--config", "profile.dev.package.ballast-kernels.opt-level=1"]  # Compiled often, run once.
        environment = dict(os.environ, CARGO_TARGET_DIR=str(self.target), CARGO_INCREMENTAL="1",
                           BALLAST_CUDA_ARTIFACTS=str(self.target / "cuda"))
        done = subprocess.run(command, cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            return None
        messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [message["executable"] for message in messages if message.get("executable")]

    def compile(self, sources, mutant, into):
        """PTX of all of `sources` that include the mutant and its tests launch, into a directory; the compiler's complaint,
        or None."""
        launched = {file for test in mutant["tests"] for file in LAUNCHED[test.rpartition("::")[2]]}
        for source in sorted(sources.glob("*.cu")):
            if source.stem not in launched or mutant["file"] not in (path.name for path in build.included(source)):
                continue
            command = [self.nvcc, *build.COMPILE[1:], source.name, "-o", into / f"{source.stem}.ptx"]
            done = subprocess.run(command, cwd=sources, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                return done.stdout.strip()
        return None

    def judge(self, names, ptx=None, programs=None):
        """What became of a mutant: the tests at short shapes first, which most faults do not survive."""
        short = [f"short::{storage}{name}" for name in names for storage in ("f32::", "bf16::") if "::" not in name]
        short += [f"short::{name}" for name in names if "::" in name]
        for names, options in ((short, ["--ignored"]), (names, [])):
            _, failed = self.run(names, options, ptx, programs)
            if failed:
                return Outcome(True, f"caught by {failed[0]}")
        return Outcome(False, "SURVIVED")

    def run(self, names, options=(), ptx=None, programs=None):
        """Runs the tests whose names contain one of `names`: those that passed, and those that failed."""
        passed, failed = [], []
        for program in programs or self.tests:
            command = [program, *names, *options, "--test-threads=1"]
            environment = dict(self.environment, **({"BALLAST_CUDA_PTX": str(ptx)} if ptx else {}))
            said, code = outcome_of(command, environment)
            if code is None:
                failed.append("no end in sight")
                continue
            passed += re.findall(r"^test (\S+) \.\.\. ok$", said, re.MULTILINE)
            failures = re.findall(r"^    (\S+)$", said.rpartition("\nfailures:\n")[2], re.MULTILINE)
            failed += failures or ([f"the program ended with {code}"] if code else [])
        return passed, failed


def outcome_of(command, environment):
    """What a program prints and its exit status; no status when it does not end. Nothing that it started is left behind."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as program:
        try:
            said, _ = program.communicate(timeout=SECONDS)
            return said, program.returncode
        except subprocess.TimeoutExpired:
            return "", None
        finally:
            try:
                os.killpg(program.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # All of them have ended.


def copy_of_workspace(root):
    """A workspace like this one in which kernels/src/cuda may be changed: all else is linked."""
    if root.exists():
        shutil.rmtree(root)
    link_all(REPOSITORY, root, without=("kernels", "target", ".git"))
    link_all(REPOSITORY / "kernels", root / "kernels", without=("src",))
    link_all(REPOSITORY / "kernels" / "src", root / "kernels" / "src", without=("cuda",))
    shutil.copytree(REPOSITORY / "kernels" / "src" / "cuda", root / "kernels" / "src" / "cuda")
    return root


def link_all(source, to, without):
    to.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in without:
            (to / path.name).symlink_to(path)


def stale(mutants, directory):
    """Those whose place is not found exactly once: the code has changed since they were written."""
    counts = [(mutant, (directory / mutant["file"]).read_text().count(mutant["search"])) for mutant in mutants]
    return [f"{mutant['name']}: {count} times in {mutant['file']}, not once" for mutant, count in counts if count != 1]


def changed(mutant, path):
    """The text of a file with the fault in it, whose place was found once."""
    return path.read_text().replace(mutant["search"], mutant["replace"])


def judge_kernel(bench, mutant):
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        sources, ptx = Path(scratch) / "sources", Path(scratch) / "ptx"
        other = lambda _, names: [name for name in names if not name.endswith((".cu", ".cuh"))]  # noqa: E731
        shutil.copytree(KERNELS, sources, ignore=other)
        (sources / mutant["file"]).write_text(changed(mutant, KERNELS / mutant["file"]))
        ptx.mkdir()
        complaint = bench.compile(sources, mutant, ptx)
        if complaint is not None:
            return Outcome(False, f"does not compile: {complaint.splitlines()[0]}")
        return bench.judge(mutant["tests"], ptx=ptx)


def judge_host(bench, mutant):
    path = bench.workspace / "kernels" / "src" / "cuda" / mutant["file"]
    original = path.read_text()
    path.write_text(changed(mutant, path))
    try:
        programs = bench.build(bench.workspace)
    finally:
        path.write_text(original)
    if programs is None:
        return Outcome(False, "does not compile")
    return bench.judge(mutant["tests"], programs=programs)


def main():
    parser = argparse.ArgumentParser(description="Runs seeded faults in the CUDA backend against its tests.")
    parser.add_argument("--lib", type=Path, required=True, help="directory of the device's libraries")
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--packages", default="-p ballast-kernels --features cuda,reference",
                        help="what cargo is told to test; the same as in another build, so that dependencies are not compiled twice")
    parser.add_argument("--target", type=Path, default=REPOSITORY / "target", help="cargo's target directory")
    parser.add_argument("--cache", type=Path, default=toolchain.default_cache(), help="directory of the compiler")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="mutants at once")
    parser.add_argument("--only", nargs="+", default=[""], help="mutants whose file or name contains one of these")
    arguments = parser.parse_args()
    every = [tomllib.loads((HERE / name).read_text())["mutant"] for name in ("mutants.toml", "host.toml")]
    if outdated := stale(every[0], KERNELS) + stale(every[1], HOST):
        raise SystemExit("run.py: mutants of code that is no longer there:\n" + "\n".join(outdated))
    kernel, host = (
        [mutant for mutant in mutants if any(part in mutant["file"] + " " + mutant["name"] for part in arguments.only)]
        for mutants in every)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        try:
            return report(Bench(arguments, scratch), kernel, host, arguments.jobs)
        except toolchain.Unavailable as error:
            print(f"run.py: the CUDA compiler cannot be had: {error}", file=sys.stderr)
            return build.UNAVAILABLE


def report(bench, kernel, host, jobs):
    """Runs all mutants and prints what became of them; the exit status."""
    wanted = sorted({name for mutant in kernel + host for name in mutant["tests"]})
    passed, failed = bench.run(wanted)
    idle = [name for name in wanted if not any(name in test for test in passed)]
    if failed or idle:
        print(f"run.py: without a fault these fail: {failed}; these are not there: {idle}", file=sys.stderr)
        return 1
    caught = 0
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for mutant, outcome in zip(kernel, pool.map(lambda mutant: judge_kernel(bench, mutant), kernel)):
            caught += tell(mutant, outcome)
    for mutant in host:
        caught += tell(mutant, judge_host(bench, mutant))
    every = len(kernel) + len(host)
    print(f"{caught} passed, {every - caught} failed")
    return 0 if caught == every else 1


def tell(mutant, outcome):
    print(f"{mutant['file']:24} {mutant['name']:52} {outcome.how:40} {mutant['why']}", flush=True)
    return outcome.caught


if __name__ == "__main__":
    sys.exit(main())
