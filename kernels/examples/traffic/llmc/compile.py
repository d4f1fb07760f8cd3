#!/usr/bin/env python3
"""Compiles the kernels of a checkout of llm.c to PTX with the pinned compiler, for `make traffic`.

They are compiled as llm.c's own Makefile does it, fast arithmetic included, for bf16. Exit status 69: the compiler cannot be
had.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "cuda"))
import toolchain  # noqa: E402

UNAVAILABLE = 69
FLAGS = ("-std=c++17", "-O3", "--use_fast_math", "-DENABLE_BF16", "-arch=compute_80", "-ptx", "--disable-warnings")


def main():
    parser = argparse.ArgumentParser(description="Compiles llm.c's kernels to PTX.")
    parser.add_argument("--llmc", type=Path, required=True, help="a checkout of github.com/karpathy/llm.c")
    parser.add_argument("--out", type=Path, required=True, help="the PTX file")
    parser.add_argument("--cache", type=Path, default=toolchain.default_cache(), help="directory of the compiler")
    arguments = parser.parse_args()
    if not (arguments.llmc / "llmc" / "layernorm.cuh").is_file():
        print(f"compile.py: {arguments.llmc} holds no llmc/layernorm.cuh: is it a checkout of llm.c?", file=sys.stderr)
        return 1
    try:
        nvcc = toolchain.toolkit(arguments.cache.resolve()) / "bin" / "nvcc"
    except toolchain.Unavailable as error:
        print(f"compile.py: the CUDA compiler cannot be had: {error}", file=sys.stderr)
        return UNAVAILABLE
    command = [nvcc, *FLAGS, f"-I{arguments.llmc}", f"-I{HERE / 'include'}", HERE / "kernels.cu", "-o", arguments.out]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
