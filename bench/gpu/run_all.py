#!/usr/bin/env python3
"""The body of test-gpu.sh: asks for the GPU, runs every test executable of the bundle, then the benchmark, and sums up.

A JSON line a result on standard output, with "how": "measured", or "emulated" where the device is the software device,
whose speeds and memory say nothing about a GPU.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import device_tests
import machine
import throughput

BUNDLE = pathlib.Path(__file__).resolve().parent.parent.parent
BENCHMARK = "throughput"
# sysexits.h
USAGE, UNAVAILABLE = 64, 69


class Arguments(argparse.ArgumentParser):
    """Wrong arguments end with `USAGE`: 2, which argparse would take, says nothing."""

    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"test-gpu: {message}\n")


class Results:
    """Prints results as they come, and remembers them."""

    def __init__(self, device, file):
        self.device, self.file, self.all = device, file, []

    def add(self, result):
        line = json.dumps({**result, "device": self.device.name, "how": self.device.how})
        print(line, flush=True)
        if self.file:
            print(line, file=self.file, flush=True)
        say(f"{result['result']}: {result['status']}, {result['seconds']:.0f} s{detail(result)}")
        self.all.append(result)

    def failed(self):
        return [result["result"] for result in self.all if result["status"] == "failed"]


def say(text):
    """A line for people."""
    print(f"test-gpu: {text}", file=sys.stderr, flush=True)


def detail(result):
    """What a result is about, in a few words."""
    if "why" in result:
        return f"; {result['why'].strip()}"
    if "passed" in result:
        names = {line.partition(": skipped: ")[0] for line in result["skipped"]}
        skipped = f", {len(names)} of them skipped in whole or part" if names else ""
        return f"; {result['passed']} tests passed{skipped}, {len(result['failed'])} failed"
    peer = f"{result['peer']['tokens_per_second']:.0f}" if result["peer"] else f"absent ({result['peer_absent']})"
    return f"; {result['tokens_per_second']:.0f} tokens/s, PEFT {peer}"


def parse(names):
    arguments = Arguments(prog="test-gpu.sh", description="Tests and benchmark of Ballast on a GPU.")
    arguments.add_argument("--quick", action="store_true",
                           help="a tiny model in the benchmark, for the software device")
    arguments.add_argument("--only", action="append", choices=[*names, BENCHMARK], help="run these alone (repeat it)")
    arguments.add_argument("--results", type=argparse.FileType("w"), help="write the JSON lines to this file too")
    arguments.add_argument("--timeout", type=int, default=1800, help="seconds that one test executable may take")
    arguments.add_argument("--peft-python", default=sys.executable, help="interpreter with torch, transformers, peft")
    return arguments.parse_args()


def main():
    manifest = json.loads((BUNDLE / "MANIFEST.json").read_text())
    arguments = parse([test["name"] for test in manifest["tests"]])
    wanted = lambda name: not arguments.only or name in arguments.only
    with tempfile.TemporaryDirectory(prefix="test-gpu-") as scratch:
        scratch = pathlib.Path(scratch)
        try:
            machine.verify(BUNDLE, manifest)
            environment = machine.environment(scratch)
            device = machine.device(BUNDLE / "bin/ballast", environment)
        except machine.Unavailable as unavailable:
            say(f"unavailable: {unavailable}")
            return UNAVAILABLE
        say(f"ballast {manifest['version']} ({manifest['commit']}) on {device.name}, {device.how}")
        results = Results(device, arguments.results)
        for test in manifest["tests"]:
            if wanted(test["name"]):
                results.add(device_tests.run(BUNDLE, test, environment, arguments.timeout))
        if wanted(BENCHMARK):
            bench = throughput.Benchmark(BUNDLE, scratch, environment, device.name, arguments.peft_python)
            for result in bench.run(throughput.QUICK if arguments.quick else throughput.FULL):
                results.add(result)
    failed = results.failed()
    verdict = f"{len(failed)} failed: {', '.join(failed)}" if failed else "all that ran passed"
    say(f"{len(results.all)} results, {device.how} on {device.name}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
