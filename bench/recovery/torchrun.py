#!/usr/bin/env python3
"""PyTorch's elastic launcher under the strikes of `make recovery`: how soon training goes on after a worker is killed, or hangs.

    torchrun.py --python PYTHON --model DIR --rows ROWS.jsonl [--tuned] [--kills 20] [--stops 3] [--seed 1] [--log FILE]

torchrun keeps three workers of train.py on this machine. At moments drawn from the seed one of them, drawn too, is struck. Prints one
JSON object a line, in seconds, in the shape of e2e's `recovery`:

- `killed`: from SIGKILL to the next new step in a checkpoint, those under way done again;
- `hung`: from SIGSTOP to the same, less the timeout of a collective (5 s, as our lease; DDP's own is 30 minutes).

As users run it, all of torchrun's settings but the number of restarts are its defaults. Tuned is what somebody could do who knows
the launcher well: it looks after its workers 100 times a second, forks them off an interpreter that has imported everything
(preloaded.py), and a worker that fails kills the others, since torchrun would give one that hangs 30 s to end.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
WORKERS = 3
TIMEOUT = 5
# Longest wait for anything, in seconds; far beyond what it takes.
PATIENCE = 120
POLL = 0.005

AS_USERS = ["-m", "torch.distributed.run"]
TUNED = [HERE / "preloaded.py", "--start-method", "fork", "--run-path", "--monitor-interval", "0.01"]

ENVIRONMENT = {
    # All are on this machine, whose name need not resolve; and it has fewer cores than there are workers.
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    # A store for each generation. Else (torch 2.15) restarted workers read where the dead ones listened, and wait for them.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class Job:
    """torchrun and its workers, and what they tell. All of them are gone when it is left."""

    def __init__(self, arguments, state, log):
        self.events, self.read, self.tail, self.known = [], 0, "", set()
        self.file = pathlib.Path(state) / "events.jsonl"
        launch = TUNED if arguments.tuned else AS_USERS
        script = [HERE / "train.py", "--model", arguments.model, "--rows", arguments.rows, "--state", state, "--timeout", TIMEOUT]
        script += ["--take-siblings-along"] if arguments.tuned else []
        command = [arguments.python, *launch, "--standalone", "--nproc-per-node", WORKERS, "--max-restarts", 100000, *script]
        environment = {**os.environ, **ENVIRONMENT}
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                        env=environment, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Kills torchrun first, so that nothing is restarted."""
        self.look()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for worker in self.known:
            if b"train.py" in command_line(worker):
                os.kill(worker, signal.SIGKILL)

    def look(self):
        """Reads what is new."""
        if self.file.exists():
            with open(self.file, encoding="utf-8") as file:
                file.seek(self.read)
                new = file.read()
            # A line is written at once, but may be read in parts.
            whole = new[:new.rfind("\n") + 1]
            self.read += len(whole.encode())
            self.events += map(json.loads, whole.splitlines())
            self.known = {event["pid"] for event in self.events}

    def first(self, start, wanted, what):
        """The first event after the first `start` that is wanted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.look()
            found = next((event for event in self.events[start:] if wanted(event)), None)
            if found:
                return found
            if self.process.poll() is not None:
                sys.exit(f"recovery: torchrun ended with {self.process.returncode}")
            if time.monotonic() > deadline:
                sys.exit(f"recovery: waited {PATIENCE} s for {what}")
            time.sleep(POLL)

    def workers(self):
        """Of the present generation."""
        return [event["pid"] for event in self.events if event["event"] == "started"][-WORKERS:]

    def done(self):
        """The newest step in a checkpoint."""
        return max((event["step"] for event in self.events if event["event"] == "step"), default=0)

    def strike(self, chance, how):
        """Strikes a worker at a moment; seconds until a new step is in a checkpoint."""
        time.sleep(chance.random())
        self.look()
        present, heard = self.workers(), len(self.events)
        struck = time.monotonic()
        os.kill(chance.choice(present), how)
        # The step under way may still complete without the one that was struck.
        again = self.first(heard, lambda event: event["pid"] not in present, "workers to start again")
        done = self.done_before(again)
        return self.first(heard, lambda e: e["event"] == "step" and e["pid"] not in present and e["step"] > done, "a step")["at"] - struck

    def done_before(self, event):
        """The newest step in a checkpoint of those who were there before."""
        return max(e["step"] for e in self.events[:self.events.index(event)] if e["event"] == "step")


def command_line(process):
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def summary(measure, peer, seconds):
    """One line; percentiles as e2e's `recovery` takes them."""
    seconds = sorted(seconds)
    at = lambda share: seconds[min(int(len(seconds) * share), len(seconds) - 1)] if seconds else None
    line = {"measure": measure, "model": "tiny", "peer": peer, "count": len(seconds), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)}
    print(json.dumps(line), flush=True)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--python", required=True, help="interpreter with torch and peft")
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--rows", required=True)
    arguments.add_argument("--tuned", action="store_true")
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--stops", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--log", default=os.devnull, help="what torchrun and its workers print")
    arguments = arguments.parse_args()

    chance = random.Random(arguments.seed)
    peer = "torchrun, tuned" if arguments.tuned else "torchrun, as users run it"
    with tempfile.TemporaryDirectory() as state, open(arguments.log, "wb") as log, Job(arguments, state, log) as job:
        job.first(0, lambda event: event["event"] == "step", "the first step")
        killed = [job.strike(chance, signal.SIGKILL) for _ in range(arguments.kills)]
        hung = [job.strike(chance, signal.SIGSTOP) - TIMEOUT for _ in range(arguments.stops)]
        steps = [event["at"] for event in job.events if event["event"] == "step"]
    summary("step", peer, [later - earlier for earlier, later in zip(steps, steps[1:])])
    summary("killed", peer, killed)
    summary("hung", peer, hung)


if __name__ == "__main__":
    main()
