#!/usr/bin/env python3
"""Ballast beside its peers, on this machine, in one run: `make bench`.

    run.py --ballast BINARY --tools DIR --peft-python PYTHON [--rounds 5]

Prints one JSON object a line: {"measure", "ballast", "column", "peer", "ratio"}; `column` says what the peer is. Rounds of ballast
and of the peer alternate, so that a noisy neighbour meets both; each figure is the median of its rounds, and only ratios of one run
mean anything. Memory is measured in a round of its own, because looking at it takes time. Where the peer's environment is missing
(`make peft-env`) its figures are null and a line on stderr says so.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN_FILE = ROOT / "bench/throughput.toml"
PREPARE_FILE = ROOT / "bench/prepare.toml"
MODEL = ROOT / "examples/models/SmolLM2-135M-Instruct.Q4_1.gguf"
ALL_ROWS = ROOT / "bench/data/gsm8k-train.jsonl.gz"
THREADS = 2
# Samples of a step, as the run file says.
BATCH = 8
# What two workers share: enough micro-batches a step for both.
SHARED_BATCH, SHARED_STEPS = 32, 4
USERS, TUNED = "peft as its users run it", "peft tuned by an expert"
# Large blocks stay with the process between steps.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 26)}


class PeakMemory:
    """Largest proportional memory (PSS) of a process and its descendants together, in bytes, looked at 5 times a second."""

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
        while not self.over.wait(0.2):
            self.peak = max(self.peak, sum(map(proportional, family(self.pid))))


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


def proportional(pid):
    """Bytes of a process in memory, shared pages by its share of them; 0 when it is gone."""
    try:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def run(command, watch_memory=False, environment=None):
    """Runs a command; gives its standard output, its lines on standard error with the seconds at which they came, and its peak memory."""
    began, lines = time.monotonic(), []
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, **(environment or {})})
    reader = threading.Thread(target=lambda: lines.extend((time.monotonic() - began, line) for line in process.stderr))
    reader.start()
    with PeakMemory(process.pid) if watch_memory else contextlib.nullcontext() as memory:
        output = process.stdout.read()
        status = process.wait()
    reader.join()
    if status != 0:
        said = "".join(line for _, line in lines)[-4000:]
        sys.exit(f"bench: {' '.join(map(str, command))} ended with {status}:\n{said}")
    return output, lines, memory.peak if watch_memory else None


def summary(seconds, tokens, first_step_ended, peak):
    """Figures of one round. The first step is not counted: caches fill, allocators grow."""
    return {"tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]), "to_first_forward": first_step_ended - seconds[0],
            "to_first_step": first_step_ended, "peak": peak}


def variables(settings):
    """Settings of the run file as variables of the environment."""
    return {f"BALLAST__{key.upper().replace('.', '__')}": str(value) for key, value in settings.items()}


def samples(tools, settings, path):
    """Writes what ballast trains, for the peer."""
    with open(path, "w", encoding="utf-8") as rows:
        subprocess.run([tools / "dump_samples", RUN_FILE], check=True, stdout=rows, env={**os.environ, **variables(settings)})


def ballast_round(binary, settings, watch_memory=False):
    """One round of training by ballast: one worker of two threads, unless `settings` say otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch) / "run"
        settings = {"run.dir": directory, "cluster.threads": THREADS, **settings}
        _, lines, peak = run([binary, "train", RUN_FILE], watch_memory, variables(settings))
        steps = [json.loads(line) for line in (directory / "metrics/steps.jsonl").read_text().splitlines()]
    first = next(seconds for seconds, line in lines if line.startswith("step 1/"))
    return summary([s["seconds"] for s in steps], [s["tokens"] for s in steps], first, peak)


def peft_round(python, rows, column, watch_memory=False):
    """One round of training by peft."""
    command = [python, ROOT / "bench/peft_train.py", "--model", MODEL, "--rows", rows, "--threads", THREADS]
    if column == TUNED:
        command.append("--group-by-length")
    output, lines, peak = run(command, watch_memory, TUNED_MALLOC if column == TUNED else None)
    figures = json.loads(output)
    first = next(seconds for seconds, line in lines if line.startswith("first step"))
    return summary(figures["seconds"], figures["tokens"], first, peak)


def report(measure, ballast, peer, column):
    """One line."""
    ratio = round(ballast / peer, 3) if peer else None
    print(json.dumps({"measure": measure, "ballast": ballast, "column": column, "peer": peer, "ratio": ratio}), flush=True)


def median(rounds, key, scale, digits):
    return round(statistics.median(r[key] for r in rounds) / scale, digits) if rounds else None


def training(arguments):
    """Throughput, start and peak memory, and how near the memory estimate is."""
    python, columns = arguments.peft_python, [USERS, TUNED]
    settings = {"data.limit": arguments.steps * BATCH}
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as rows:
        samples(arguments.tools, settings, rows.name)
        ours, theirs = [], {column: [] for column in columns}
        for _ in range(arguments.rounds):
            ours.append(ballast_round(arguments.ballast, settings))
            for column in columns if python else []:
                theirs[column].append(peft_round(python, rows.name, column))
        peak = ballast_round(arguments.ballast, settings, watch_memory=True)["peak"]
        peaks = {column: [peft_round(python, rows.name, column, watch_memory=True)] if python else [] for column in columns}
    what = f"SmolLM2-135M f32, LoRA r16 on all linears, GSM8K, batch 8, {THREADS} threads"
    for column in columns:
        for key, name in [("tokens_per_second", "tokens/s"), ("to_first_forward", "s from process start to the first forward pass"),
                          ("to_first_step", "s from process start to the end of the first step")]:
            report(f"training, {name} ({what})", median(ours, key, 1, 2), median(theirs[column], key, 1, 2), column)
        report(f"training, peak memory (PSS of all processes), GB ({what})", round(peak / 1e9, 3), median(peaks[column], "peak", 1e9, 3), column)
    estimated = json.loads(run([arguments.ballast, "estimate", RUN_FILE, "--json"], environment=variables({**settings, "cluster.threads": THREADS}))[0])["process_bytes"]
    report("peak memory of coordinator and worker, GB, beside the estimate for the worker", round(peak / 1e9, 3), round(estimated / 1e9, 3),
           "`ballast estimate`")


def sharing(arguments):
    """The same two cores as one worker of two threads and as two workers of one."""
    steps = min(arguments.steps, SHARED_STEPS)
    settings = {"train.global_batch": SHARED_BATCH, "train.micro_batch_tokens": 512, "data.limit": steps * SHARED_BATCH}
    one, two, theirs = [], [], []
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as rows:
        samples(arguments.tools, settings, rows.name)
        for _ in range(arguments.rounds):
            one.append(ballast_round(arguments.ballast, settings))
            two.append(ballast_round(arguments.ballast, {**settings, "cluster.workers": 2, "cluster.threads": 1}))
            if arguments.peft_python:
                theirs.append(ddp_round(arguments.peft_python, rows.name))
    what = f"training, tokens/s, two workers of one thread (SmolLM2-135M f32, LoRA r16 on all linears, GSM8K, batch {SHARED_BATCH})"
    ours = median(two, "tokens_per_second", 1, 2)
    report(what, ours, median(one, "tokens_per_second", 1, 2), "one worker of two threads")
    report(what, ours, median(theirs, "tokens_per_second", 1, 2), "peft with DDP over gloo, two processes of one thread")


def ddp_round(python, rows):
    """One round of training by peft on two processes of one thread."""
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command = [*launch, ROOT / "bench/peft_train.py", "--model", MODEL, "--rows", rows, "--threads", 1, "--batch", SHARED_BATCH]
    # All are on this machine, whose name need not resolve.
    output, lines, _ = run(command, environment={"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    figures = json.loads(output[output.index("{"):])
    first = next(seconds for seconds, line in lines if "first step" in line)
    return summary(figures["seconds"], figures["tokens"], first, None)


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
    report(what, prepared, per_second(ours, "tokenizers_seconds"),
           "tokenizers' batch encoding of the same texts")
    report(what, prepared, per_second(theirs, "seconds"), "the LookAhead authors' data step, which stops at text")


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
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=10)
    arguments = arguments.parse_args()
    training(arguments)
    sharing(arguments)
    preparing(arguments)


if __name__ == "__main__":
    main()
