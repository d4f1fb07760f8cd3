#!/usr/bin/env python3
"""LoRA training with peft and DDP, as its users write it for torchrun: what bench/recovery/torchrun.py starts and strikes.

    train.py --model DIR --rows ROWS.jsonl --state DIR [--timeout 5] [--take-siblings-along]

ROWS are lines of `dump_samples`. Every step ends with a checkpoint (adapter, optimizer, step), atomic and synced to the disk, and a
worker that finds one goes on from it. Each worker appends what happened to STATE/events.jsonl; times are of the monotonic clock, which
all processes of a machine share.
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import sys
import time

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from peft_model import load  # noqa: E402
from peft_train import ALL_LINEAR, collate, scored  # noqa: E402

# Of e2e/fixtures/tiny.toml.
GLOBAL_BATCH, RANK, ALPHA, LEARNING_RATE = 16, 4, 8, 0.01


class Events:
    """What this worker tells the one who watches: a line each, written at once."""

    def __init__(self, path, rank):
        self.file, self.rank = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), rank

    def tell(self, event, **more):
        line = {"event": event, "rank": self.rank, "pid": os.getpid(), "at": time.monotonic(), **more}
        os.write(self.file, (json.dumps(line) + "\n").encode())


class Checkpoint:
    """The last step, in one file."""

    def __init__(self, directory):
        self.path, self.directory = directory / "checkpoint.pt", directory

    def save(self, step, adapter, optimizer):
        scratch = self.path.with_suffix(".new")
        with open(scratch, "wb") as file:
            torch.save({"step": step, "adapter": get_peft_model_state_dict(adapter), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, self.path)
        folder = os.open(self.directory, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def resume(self, adapter, optimizer):
        """Steps done."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True)
        set_peft_model_state_dict(adapter, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]


def batches(samples, step):
    """The samples of a step, the rows over and over."""
    return [samples[(step * GLOBAL_BATCH + index) % len(samples)] for index in range(GLOBAL_BATCH)]


def train(model, optimizer, samples, first, events, checkpoint):
    """Without an end."""
    rank, world = dist.get_rank(), dist.get_world_size()
    step = first
    while True:
        batch = batches(samples, step)
        share = batch[rank::world]
        # DDP takes the mean over workers, which have unequal shares of the batch.
        weight = world * scored(share) / scored(batch)
        (model(**collate(share, model.module.config.pad_token_id or 0)).loss * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if rank == 0:
            checkpoint.save(step, model.module, optimizer)
            events.tell("step", step=step)


def worker(arguments, events):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # The timeout of collectives alone: that of the default group would also bound how far apart workers may start.
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=arguments.timeout))
    adapter = get_peft_model(load(arguments.model), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"))
    adapter.train()
    optimizer = torch.optim.AdamW((p for p in adapter.parameters() if p.requires_grad), lr=LEARNING_RATE, weight_decay=0.0)
    checkpoint = Checkpoint(arguments.state)
    first = checkpoint.resume(adapter, optimizer)
    with open(arguments.rows, encoding="utf-8") as rows:
        samples = [json.loads(line) for line in rows]
    train(DistributedDataParallel(adapter, process_group=group), optimizer, samples, first, events, checkpoint)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--rows", required=True)
    arguments.add_argument("--state", type=pathlib.Path, required=True)
    arguments.add_argument("--timeout", type=float, default=5, help="seconds that a collective may take")
    arguments.add_argument("--take-siblings-along", action="store_true", help="a worker that fails kills the others, which may hang")
    arguments = arguments.parse_args()

    events = Events(arguments.state / "events.jsonl", int(os.environ["RANK"]))
    events.tell("started")
    dist.init_process_group("gloo")
    siblings = [None] * dist.get_world_size()
    dist.all_gather_object(siblings, os.getpid())
    try:
        worker(arguments, events)
    except RuntimeError:
        if arguments.take_siblings_along:
            # torchrun ends this one too as soon as it sees the first of them gone.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for process in set(siblings) - {os.getpid()}:
                kill_if_there(process)
        raise


def kill_if_there(process):
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()
