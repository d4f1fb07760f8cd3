#!/usr/bin/env python3
"""Ballast beside PyTorch's elastic launcher after a worker is killed, or hangs: `make recovery`.

    compare.py --recovery BINARY --dump-samples BINARY --peft-python PYTHON [--kills 200] [--peer-kills 20] [--peer-stops 3]

Prints the lines of `recovery` and of torchrun.py, which trains the same model on the same rows, as users run it and tuned; then a line
{"measure", "ballast", "column", "peer", "ratio"} for each that both have, of medians. Where the peer's environment is missing (`make peft-env`)
there is only ballast, and a line on stderr says so.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from run import report  # noqa: E402

FIXTURES = ROOT / "e2e/fixtures"
SHARED = ["killed", "hung"]


def lines(*command):
    """Runs a command and passes its lines on; gives what they say."""
    found = []
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            found.append(json.loads(line))
    if process.returncode != 0:
        sys.exit(f"recovery: {command[0]} ended with {process.returncode}")
    return {line["measure"]: line for line in found}


def peers(arguments):
    """The lines of each peer."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as rows:
        subprocess.run([arguments.dump_samples, FIXTURES / "tiny.toml"], check=True, stdout=rows)
        strikes = ["--kills", arguments.peer_kills, "--stops", arguments.peer_stops]
        command = [sys.executable, ROOT / "bench/recovery/torchrun.py", "--python", arguments.peft_python,
                   "--model", FIXTURES / "tiny-model", "--rows", rows.name, *strikes]
        return [lines(*command, *tuned) for tuned in ([], ["--tuned"])]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--recovery", type=pathlib.Path, required=True)
    arguments.add_argument("--dump-samples", type=pathlib.Path, required=True)
    arguments.add_argument("--peft-python", required=True)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--peer-kills", type=int, default=20)
    arguments.add_argument("--peer-stops", type=int, default=3)
    arguments = arguments.parse_args()
    ballast = lines(arguments.recovery, "--kills", arguments.kills)
    if not shutil.which(arguments.peft_python):
        print(f"recovery: {arguments.peft_python} is not there, so there is no peer; `make peft-env` makes it", file=sys.stderr)
        return
    for peer in peers(arguments):
        for measure in SHARED:
            ours, theirs = ballast[measure]["p50"], peer[measure]["p50"]
            report(f"{measure}, p50 seconds", ours, theirs, peer[measure]["peer"])


if __name__ == "__main__":
    main()
