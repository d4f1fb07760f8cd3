#!/usr/bin/env python3
"""Builds the CUDA artifacts and checks what ptxas made of them (`make cuda`).

Every kernels/cuda/*.cu becomes PTX for compute_80, which any later device can compile for itself, and that PTX becomes
a cubin for each of ARCHITECTURES: so what the tests execute without a GPU is what all of them hold. What is up to date
is not built again. Then each kernel's registers, shared memory, spills and special instructions are compared with
resources.tsv, exactly: the compiler is pinned.

Exit status: 0 built and as the table says; 1 does not compile, or differs from the table; 69 the compiler cannot be
had.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import resources
import toolchain

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Default arithmetic: IEEE division and square root, subnormals kept, no fast approximations.
COMPILE = ("nvcc", "-std=c++17", "-O3", "-Werror", "all-warnings", "-arch=compute_80", "-ptx")
# Spills and local memory are judged by the table, where a kernel can have a reason for them.
ASSEMBLE = ("ptxas", "-O3", "--warning-as-error")
UNAVAILABLE = 69


class Failed(Exception):
    """A kernel does not compile."""


@dataclass(frozen=True)
class Product:
    """One output file: how it is called, the command that makes it, and the files that shape it."""

    name: str
    command: tuple
    inputs: tuple
    architecture: str | None  # None for PTX.

    def key(self):
        """Changes with all that shapes the output: inputs, command, compiler, and the reading of its resources."""
        digest = hashlib.sha256(repr(self.command).encode())
        for path in (*self.inputs, HERE / "resources.py", toolchain.REQUIREMENTS):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


def compiled(source):
    """The PTX of a source. Named relative to HERE, so that it does not depend on where the checkout lies."""
    return Product(f"{source.stem}.ptx", (*COMPILE, source.name), tuple(sorted(included(source))), None)


def included(source):
    """A source and all of ours that it includes."""
    paths, waiting = set(), [source]
    while waiting:
        path = waiting.pop()
        if path not in paths:
            paths.add(path)
            names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
            waiting += [path.parent / name for name in names]
    return paths


def assembled(ptx, architecture):
    """The cubin of a PTX file."""
    command = (*ASSEMBLE, f"-arch={architecture}", str(ptx))
    return Product(f"{ptx.stem}.{architecture}.cubin", command, (ptx,), architecture)


class Outputs:
    """The output directory, with a record of each product beside it: the key it was built from, and its rows."""

    def __init__(self, path, arguments):
        self.path = path
        self.records = path / ".records"
        self.arguments = arguments
        self.toolkit = None  # Fetched when something has to be built.

    def bring_up_to_date(self, products):
        """Builds what is not up to date; the rows of all, by product."""
        rows = {product: self.recorded(product) for product in products}
        stale = [product for product in products if rows[product] is None]
        if stale and self.arguments.check:
            raise Failed("not up to date: " + ", ".join(product.name for product in stale))
        if stale:
            self.toolkit = self.toolkit or toolchain.toolkit(self.arguments.cache.resolve())
            with ThreadPoolExecutor(max_workers=self.arguments.jobs) as pool:
                rows.update(zip(stale, pool.map(self.build, stale)))
        return rows

    def recorded(self, product):
        """The rows of an up-to-date product; None when it must be built."""
        record = self.records / f"{product.name}.json"
        if not record.is_file() or not (self.path / product.name).is_file():
            return None
        record = json.loads(record.read_text())
        if record["key"] != product.key():
            return None
        return {(row["kernel"], row["arch"]): row for row in record["rows"]}

    def build(self, product):
        """Makes one product; its record goes last, so that an interrupted build is repeated."""
        self.records.mkdir(parents=True, exist_ok=True)
        record, key = self.records / f"{product.name}.json", product.key()
        unfinished = self.records / f"{os.getpid()}.{product.name}"
        tool, *flags = product.command
        command = [self.toolkit / "bin" / tool, *flags, "-o", unfinished]
        done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            unfinished.unlink(missing_ok=True)
            raise Failed(f"{product.name} cannot be made:\n{done.stdout.rstrip()}")
        rows = resources.of_cubin(self.toolkit, unfinished, product.architecture) if product.architecture else {}
        record.unlink(missing_ok=True)
        unfinished.rename(self.path / product.name)
        record.write_text(json.dumps({"key": key, "rows": list(rows.values())}))
        return rows

    def remove_strangers(self, products):
        """Deletes artifacts whose source is gone: who embeds the directory must not find them."""
        names = {product.name for product in products}
        for path in [*self.path.glob("*.ptx"), *self.path.glob("*.cubin")]:
            if path.name not in names:
                path.unlink()


def main():
    arguments = parse_arguments()
    sources = sorted(HERE.glob("*.cu"))
    try:
        by_source = build_all(Outputs(arguments.out.resolve(), arguments), sources)
    except toolchain.Unavailable as error:
        print(f"build.py: the CUDA compiler cannot be had: {error}", file=sys.stderr)
        return UNAVAILABLE
    except Failed as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    rows = {key: row for of_source in by_source.values() for key, row in of_source.items()}
    print(resources.printed(rows))
    reasons = resources.read_table()[1]
    resources.write_table(rows, reasons, arguments.out / "table.tsv", header="")
    if arguments.bless:
        resources.write_table(rows, {key: reason for key, reason in reasons.items() if key in rows})
    return report(by_source, rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Builds the CUDA artifacts and checks them against resources.tsv.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the artifacts, such as target/cuda")
    parser.add_argument("--cache", type=Path, default=toolchain.default_cache(), help="directory of the compiler")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="compilations at once")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compile nothing: fail unless all is up to date")
    mode.add_argument("--bless", action="store_true", help="rewrite resources.tsv from what was built")
    return parser.parse_args()


def build_all(outputs, sources):
    """Brings everything up to date; the rows of each source's kernels."""
    ptx = [compiled(source) for source in sources]
    outputs.bring_up_to_date(ptx)
    cubins = {source: [assembled(outputs.path / f"{source.stem}.ptx", architecture) for architecture in ARCHITECTURES]
              for source in sources}
    rows = outputs.bring_up_to_date([cubin for of_source in cubins.values() for cubin in of_source])
    outputs.remove_strangers([*ptx, *rows])
    return {source: {key: row for cubin in cubins[source] for key, row in rows[cubin].items()} for source in sources}


def report(by_source, rows):
    """Prints all that is wrong; the exit status."""
    wrong = [*resources.differences(rows), *resources.unexplained(rows)]
    for source, of_source in by_source.items():
        wrong += resources.missing_instructions(source, of_source)
    for message in wrong:
        print(f"build.py: {message}", file=sys.stderr)
    if wrong:
        print("build.py: where the change is meant, `build.py --bless` rewrites resources.tsv", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
