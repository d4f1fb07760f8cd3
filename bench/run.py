#!/usr/bin/env python3
"""Ballast beside its peers, on this machine, in one run: `make bench`.

    run.py --ballast BINARY --tools DIR --peft-python PYTHON [--rounds 3]

Prints one JSON object a line: {"measure", "ballast", "peer", "ratio"}. Rounds of ballast and of the peer alternate, so that a noisy
neighbour meets both; each figure is the median of its rounds, and only ratios of one run mean anything. Where the peer's environment is
missing (`make peft-env`) its figures are null and a line on stderr says so.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN_FILE = ROOT / "bench/throughput.toml"
PREPARE_FILE = ROOT / "bench/prepare.toml"
MODEL = ROOT / "examples/models/SmolLM2-135M-Instruct.Q4_1.gguf"
ALL_ROWS = ROOT / "bench/data/gsm8k-train.jsonl.gz"
THREADS = 2
PAGE = os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Largest resident memory of a process and its descendants together, in bytes, looked at 10 times a second.

    Pages that several of them map (a model file) count for each, so ballast, which has several processes, looks larger than it is. The
    exact proportional size would cost the kernel a walk through every page table, at the expense of what is measured.
    """

    def __init__(self, pid):
        self.pid, self.peak, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _watch(self):
        while not self.over.wait(0.1):
            self.peak = max(self.peak, sum(map(resident, family(self.pid))))


def family(pid):
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for children in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                pass
    return found


def resident(pid):
    """Bytes of a process in memory; 0 when it is gone."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def run(command):
    """Runs a command; gives its standard output and its peak memory."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True)
        with PeakMemory(process.pid) as memory:
            output = process.stdout.read()
            status = process.wait()
        if status != 0:
            errors.seek(0)
            sys.exit(f"bench: {' '.join(map(str, command))} ended with {status}:\n{errors.read()[-4000:]}")
    return output, memory.peak


def summary(seconds, tokens, peak):
    """Figures of one round. The first step is not counted: caches fill, allocators grow."""
    return {"tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]), "peak": peak}


def ballast_round(binary):
    """One round of training by ballast: one worker, two threads."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch) / "run"
        _, peak = run([binary, "train", RUN_FILE, "--set", f"run.dir={directory}", "--set", f"cluster.threads={THREADS}"])
        steps = [json.loads(line) for line in (directory / "metrics/steps.jsonl").read_text().splitlines()]
    return summary([s["seconds"] for s in steps], [s["tokens"] for s in steps], peak)


def peft_round(python, rows):
    """One round of training by peft."""
    output, peak = run([python, ROOT / "bench/peft_train.py", "--model", MODEL, "--rows", rows, "--threads", THREADS])
    figures = json.loads(output)
    return summary(figures["seconds"], figures["tokens"], peak)


def report(measure, ballast, peer):
    """One line."""
    ratio = round(ballast / peer, 3) if peer else None
    print(json.dumps({"measure": measure, "ballast": ballast, "peer": peer, "ratio": ratio}), flush=True)


def training(arguments):
    """Throughput and peak memory."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as rows:
        rows.write(subprocess.run([arguments.tools / "dump_samples", RUN_FILE], check=True, capture_output=True, text=True).stdout)
        rows.flush()
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(ballast_round(arguments.ballast))
            if arguments.peft_python:
                theirs.append(peft_round(arguments.peft_python, rows.name))
    what = f"SmolLM2-135M f32, LoRA r16 on all linears, GSM8K, batch 8, {THREADS} threads"
    for key, name, scale, digits in [("tokens_per_second", "training, tokens/s", 1, 1), ("peak", "training, peak memory, GB", 1e9, 2)]:
        median = lambda rounds: round(statistics.median(r[key] for r in rounds) / scale, digits) if rounds else None
        report(f"{name} ({what}; peer: peft, padded batches)", median(ours), median(theirs))


def preparing(arguments):
    """All rows of GSM8K: beside tokenizers' batch encoding, and beside the LookAhead authors' data step."""
    def figures(*command):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(THREADS)}
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)

    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(figures(arguments.tools / "prepare_bench", PREPARE_FILE))
        if arguments.peft_python:
            theirs.append(figures(arguments.peft_python, ROOT / "bench/lookahead_script.py", "--model", MODEL, ALL_ROWS))
    per_second = lambda rounds, key: round(statistics.median(r["rows"] / r[key] for r in rounds)) if rounds else None
    prepared = per_second(ours, "ballast_seconds")
    what = f"preparing {ours[0]['rows']} GSM8K rows, rows/s, {THREADS} threads"
    report(f"{what} (peer: tokenizers' batch encoding of the same texts)", prepared, per_second(ours, "tokenizers_seconds"))
    report(f"{what} (peer: the LookAhead authors' data step, which stops at text)", prepared, per_second(theirs, "seconds"))


def usable(python):
    """The peer's interpreter, or None with a word about it."""
    if shutil.which(python):
        return python
    print(f"bench: {python} is not there, so the peer's figures are null; `make peft-env` makes it", file=sys.stderr)
    return None


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ballast", type=pathlib.Path, required=True)
    arguments.add_argument("--tools", type=pathlib.Path, required=True, help="directory of dump_samples and prepare_bench")
    arguments.add_argument("--peft-python", type=usable, required=True)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments = arguments.parse_args()
    training(arguments)
    preparing(arguments)


if __name__ == "__main__":
    main()
