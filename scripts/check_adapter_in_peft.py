#!/usr/bin/env python3
"""Loads an adapter that ballast wrote in the real peft and compares its logits with ballast's own.

    check_adapter_in_peft.py --dump-logits BINARY [--model FILE.gguf | DIR] ADAPTER

ADAPTER is `runs/<name>/adapter`. The base model is taken from --model, the demo's when not given. BINARY
(`dump_logits` of ballast-e2e) runs ballast's decoder over 16 prompts with the adapter, and writes their token ids and the logits
of their last positions. Prints one JSON object and fails when any logit differs by more than 1e-3, or when the adapter
changes nothing.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from peft_model import load  # noqa: E402

DEMO_MODEL = ROOT / "examples/models/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ROOT / "examples/data/gsm8k-heldout-64.jsonl"
COUNT = 16
TOLERANCE = 1e-3


def ballast_logits(binary, model, adapter):
    """Token ids and last logits of every prompt, as ballast computes them."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "logits.safetensors"
        subprocess.run([binary, "--model", model, "--adapter", adapter, "--prompts", PROMPTS, "--field", "question",
                        "--limit", str(COUNT), "--out", out], check=True)
        tensors = load_file(out)
    return [(tensors[f"ids_{i}"].long(), tensors[f"logits_{i}"]) for i in range(COUNT)]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--dump-logits", required=True)
    arguments.add_argument("--model", type=pathlib.Path, default=DEMO_MODEL)
    arguments.add_argument("adapter", type=pathlib.Path)
    arguments = arguments.parse_args()

    dumped = ballast_logits(arguments.dump_logits, arguments.model, arguments.adapter)
    model = PeftModel.from_pretrained(load(arguments.model), arguments.adapter).eval()
    worst, changed = 0.0, 0.0
    with torch.no_grad():
        for ids, ours in dumped:
            tuned = model(input_ids=ids[None]).logits[0, -len(ours):]
            with model.disable_adapter():
                base = model(input_ids=ids[None]).logits[0, -len(ours):]
            worst = max(worst, (tuned - ours).abs().max().item())
            changed = max(changed, (tuned - base).abs().max().item())
    passed = worst <= TOLERANCE < changed
    print(json.dumps({"measure": f"adapter in peft: largest difference of a logit, {COUNT} prompts", "difference": worst,
                      "tolerance": TOLERANCE, "adapter_changes_logits_by": changed, "passed": passed}))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
