#!/usr/bin/env python3
"""What bench/recovery.py has torchrun start: data-parallel LoRA training that goes on from its newest checkpoint.

    recovery_peer.py FOLDER
"""

import os
import pathlib
import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from peft_model import load  # noqa: E402

MODEL = pathlib.Path(__file__).resolve().parent.parent / "e2e/fixtures/tiny-model"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERY = 10
BATCH, LENGTH = 6, 120


def main():
    folder = pathlib.Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(7)
    base = load(MODEL, torch.float32)
    peft = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=ALL_LINEAR))
    optimizer = torch.optim.AdamW((p for p in peft.parameters() if p.requires_grad), lr=0.01)
    newest, step = folder / "newest.pt", 0
    if newest.exists():
        saved = torch.load(newest, weights_only=True)
        set_peft_model_state_dict(peft, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    model = DistributedDataParallel(peft)
    vocabulary = base.config.vocab_size
    while True:
        step += 1
        ids = torch.randint(vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step * 64 + rank))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            if step % EVERY == 0:
                state = {"adapter": get_peft_model_state_dict(peft), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, folder / "newest.tmp")
                os.replace(folder / "newest.tmp", newest)
            print(f"step {step} of rank 0 in process {os.getpid()}", flush=True)


if __name__ == "__main__":
    main()
