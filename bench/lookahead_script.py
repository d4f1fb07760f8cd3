#!/usr/bin/env python3
"""The steps of the LookAhead authors' data script (real mode), timed: the peer of `ballast prepare`.

    lookahead_script.py --model FILE.gguf ROWS.jsonl[.gz]

Row by row: tokenize the answer with transformers' tokenizer, turn its first six tokens back into text, append connector and
preview to the question, write the row. It stops at text: chat template and token ids are left to the trainer. Loading the
tokenizer is not timed. Prints one JSON object. Written for this comparison after arXiv:2503.19041.
"""

import argparse
import gzip
import json
import pathlib
import tempfile
import time

from transformers import AutoTokenizer

CONNECTOR = " The answer begins with: "
TOKENS = 6


def rewrite(row, tokenizer):
    """One row in real mode."""
    tokens = tokenizer.tokenize(row["answer"], add_special_tokens=False)[:TOKENS]
    preview = tokenizer.convert_tokens_to_string(tokens)
    return {"question": row["question"] + CONNECTOR + preview, "answer": row["answer"]}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=pathlib.Path, required=True)
    arguments.add_argument("rows", type=pathlib.Path)
    arguments = arguments.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model.parent, gguf_file=arguments.model.name)
    opener = gzip.open if arguments.rows.suffix == ".gz" else open
    began = time.monotonic()
    with opener(arguments.rows, "rt", encoding="utf-8") as source, tempfile.TemporaryFile("w", encoding="utf-8") as target:
        count = 0
        for line in source:
            target.write(json.dumps(rewrite(json.loads(line), tokenizer), ensure_ascii=False) + "\n")
            count += 1
    print(json.dumps({"rows": count, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
