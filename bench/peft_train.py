#!/usr/bin/env python3
"""LoRA training with peft, as its users run it: batches padded to their longest row, AdamW.

    peft_train.py --model FILE.gguf|DIR --rows ROWS.jsonl [--threads 2] [--batch 8] [--micro-batch N]
                  [--device cpu|cuda] [--dtype f32|bf16] [--group-by-length]

ROWS holds a line `{"ids": [...], "loss": [[start, end], ...]}` a sample: the ids and loss positions that ballast trains, in
order. A step's gradient is accumulated over micro-batches of so many samples, the whole batch at once by default. bf16 is what
`bf16=True` of transformers' Trainer does with a base model loaded in bf16: the adapter stays f32, products run under autocast.
--group-by-length makes batches of samples that are about as long, which saves most of the padding.
Started by torchrun, each rank trains its share of every batch, and gradients are averaged by gloo (DDP).
Says on standard error when the first step is done, and prints one JSON object: seconds, real (non-padding) tokens and loss of every step.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from peft_model import load  # noqa: E402

IGNORED = -100
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def collate(samples, padding):
    """Padded ids, labels and attention mask of one batch."""
    longest = max(len(s["ids"]) for s in samples)
    ids = torch.full((len(samples), longest), padding)
    labels = torch.full((len(samples), longest), IGNORED)
    mask = torch.zeros((len(samples), longest), dtype=torch.long)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample["ids"])
        ids[row, :len(tokens)] = tokens
        mask[row, :len(tokens)] = 1
        for start, end in sample["loss"]:
            labels[row, start:end] = tokens[start:end]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def scored(samples):
    """Tokens that the loss is the mean of."""
    return sum(end - max(start, 1) for s in samples for start, end in s["loss"])


def step(model, padding, batch, micro_batch, device, precision):
    """Accumulates the gradient of a batch's mean loss; gives the loss of this rank's share, a tensor on the device."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share, total = batch[rank::world], torch.zeros((), device=device)
    for first in range(0, len(share), micro_batch):
        samples = share[first:first + micro_batch]
        operands = {name: tensor.to(device) for name, tensor in collate(samples, padding).items()}
        with precision():
            # DDP takes the mean of the ranks' gradients.
            loss = model(**operands).loss * (world * scored(samples) / scored(batch))
        loss.backward()
        total += loss.detach()
    return total


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--rows", required=True)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--micro-batch", type=int)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    arguments.add_argument("--group-by-length", action="store_true")
    arguments = arguments.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bf16 = arguments.dtype == "bf16"
    precision = (lambda: torch.autocast(arguments.device, torch.bfloat16)) if bf16 else contextlib.nullcontext
    base = load(arguments.model, torch.bfloat16 if bf16 else torch.float32).to(arguments.device)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"))
    padding = model.config.pad_token_id
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-4, weight_decay=0.0)
    with open(arguments.rows, encoding="utf-8") as rows:
        samples = [json.loads(line) for line in rows]
    if arguments.group_by_length:
        samples.sort(key=lambda sample: len(sample["ids"]))

    seconds, tokens, losses = [], [], []
    for start in range(0, len(samples), arguments.batch):
        batch = samples[start:start + arguments.batch]
        began = time.monotonic()
        loss = step(model, padding, batch, arguments.micro_batch or len(batch), arguments.device, precision)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # Waits for the device, which does one thing after another.
        losses.append(loss.item())
        seconds.append(time.monotonic() - began)
        tokens.append(sum(len(s["ids"]) for s in batch))
        if dist.is_initialized():
            dist.all_reduce(loss)
            losses[-1] = loss.item() / dist.get_world_size()
        if start == 0 and not (dist.is_initialized() and dist.get_rank()):
            print("first step done", file=sys.stderr, flush=True)
    if dist.is_initialized():
        first = dist.get_rank() == 0
        dist.destroy_process_group()
        if not first:
            return
    print(json.dumps({"seconds": seconds, "tokens": tokens, "losses": losses}))


if __name__ == "__main__":
    main()
