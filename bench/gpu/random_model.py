#!/usr/bin/env python3
"""Writes a base model of random weights: for speed and memory only its shape counts. Standard library alone.

    random_model.py SHAPE DIR --tokenizer DIR

bf16 safetensors, with the tokenizer of another model, of whose vocabulary it may have more rows. The same weights every
time. A block of random numbers is repeated, which is as fast as the disk: its length divides no row, so rows differ.
"""

import argparse
import array
import json
import pathlib
import random
import shutil
import struct
import sys

import shapes

# A prime.
BLOCK = 262_139
# Of transformers' initialization.
DEVIATION = 0.02
ONE = b"\x80\x3f"


def block(deviation):
    """Normally distributed numbers, as bytes of bf16: the upper halves of f32."""
    source = random.Random(7)
    wide = array.array("f", (source.gauss(0, deviation) for _ in range(BLOCK)))
    if sys.byteorder == "big":
        wide.byteswap()
    wide, narrow = wide.tobytes(), bytearray(2 * BLOCK)
    narrow[0::2], narrow[1::2] = wide[2::4], wide[3::4]
    return bytes(narrow)


def repeated(block, length):
    """Pieces of a block, over and over, until it is so many bytes."""
    while length > 0:
        yield block[:length]
        length -= len(block)


def write_weights(path, tensors):
    """One safetensors file: the length of the header, the header, the tensors one after another."""
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, count = end, 1
        for size in shape:
            count *= size
        end += 2 * count
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    normal = block(DEVIATION)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            file.writelines(repeated(ONE * BLOCK if "norm" in name else normal, end - begin))


def config(shape):
    """config.json of a LLaMA."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }


def write(shape, directory, tokenizer):
    """A model directory."""
    directory.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory / name)
    (directory / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    write_weights(directory / "model.safetensors", shape.tensors())


def main():
    known = {shape.name: shape for shape in (shapes.SMOLLM2_135M, shapes.LLAMA_1B, shapes.TINY)}
    arguments = argparse.ArgumentParser()
    arguments.add_argument("shape", choices=known)
    arguments.add_argument("directory", type=pathlib.Path)
    arguments.add_argument("--tokenizer", type=pathlib.Path, required=True)
    arguments = arguments.parse_args()
    write(known[arguments.shape], arguments.directory, arguments.tokenizer)


if __name__ == "__main__":
    main()
