"""The demo's base model for transformers: the GGUF file converted once to safetensors, beside it in the cache."""

import os
import pathlib
import shutil
import tempfile

import torch
from transformers import AutoModelForCausalLM


def converted(gguf):
    """Directory of the f32 conversion of a GGUF file; made when it is not there. Converting takes most of a minute."""
    gguf = pathlib.Path(gguf).resolve()
    target = gguf.with_name(gguf.stem + ".f32")
    if not target.exists():
        scratch = pathlib.Path(tempfile.mkdtemp(dir=gguf.parent, prefix=".convert."))
        try:
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            config = loaded.config
            del config.quantization_config
            # GGUF stores an f32; 1e-5 is meant.
            config.rms_norm_eps = round(config.rms_norm_eps, 9)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(scratch)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def load(source, dtype=torch.float32):
    """The base model, from a GGUF file or a directory."""
    directory = converted(source) if str(source).endswith(".gguf") else source
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
