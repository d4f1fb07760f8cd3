#!/usr/bin/env python3
"""torchrun, with what the workers import already there: with `--start-method fork --run-path` a restarted worker imports nothing."""

import pathlib
import sys

import peft  # noqa: F401
import torch.distributed.run
import transformers.models.llama.modeling_llama  # noqa: F401

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import peft_model  # noqa: E402, F401
import peft_train  # noqa: E402, F401

if __name__ == "__main__":
    torch.distributed.run.main()
