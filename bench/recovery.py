#!/usr/bin/env python3
"""How soon PyTorch's elastic launcher trains on after a worker is killed: the peer of `make recovery`.

    recovery.py --peft-python PYTHON [--kills 10] [--workers 3]

`torchrun` starts recovery_peer.py: data-parallel LoRA training with peft over gloo, on the model of two layers that `make recovery` trains,
with a checkpoint every 10 steps. One worker is killed; the launcher starts all of them again, which go on from the checkpoint. Prints one JSON
object: seconds from SIGKILL to the first step that is newer than the newest before it.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
STEP = re.compile(r"^step (\d+) of rank 0 in process (\d+)$")


def steps(output):
    """Number, process and time of every step that rank 0 prints."""
    for line in output:
        found = STEP.match(line.strip())
        if found:
            yield int(found[1]), int(found[2]), time.monotonic()


def worker_of(launcher, spare):
    """A worker process of the launcher, other than rank 0's."""
    children = pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(child) for child in children if int(child) != spare)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peft-python", type=pathlib.Path, required=True)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--workers", type=int, default=3)
    args = arguments.parse_args()
    if not args.peft_python.exists():
        sys.exit(f"{args.peft_python} is missing: make peft-env")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            args.peft_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", args.workers,
            "--max-restarts", args.kills + 1, "--monitor-interval", "0.1", HERE / "recovery_peer.py", folder,
        ]  # fmt: skip
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
        with subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as launcher:
            seconds = list(measure(launcher, args.kills))
            launcher.send_signal(signal.SIGTERM)
    print(json.dumps({
        "measure": "torchrun killed",
        "count": len(seconds),
        "p50": statistics.median(seconds),
        "max": max(seconds),
    }))  # fmt: skip


def measure(launcher, kills):
    """Seconds that each of so many kills costs."""
    following = steps(launcher.stdout)
    for _ in range(kills):
        # In the midst of the work between two checkpoints.
        newest, process, _ = next(step for step in following if step[0] % 10 == 5)
        victim = worker_of(launcher.pid, process)
        struck = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        for number, now_in, at in following:
            if now_in == process:
                newest = number
            elif number > newest:
                yield at - struck
                break
        else:
            sys.exit("the launcher gave up")


if __name__ == "__main__":
    main()
