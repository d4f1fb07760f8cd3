#!/usr/bin/env python3
"""Builds the CUDA artifacts and checks what ptxas made of them (`make cuda`).

Every kernels/cuda/*.cu becomes PTX for compute_80, which any later device can compile for itself, and a cubin for each
architecture of ARCHITECTURES. What is up to date is not built again. Then each kernel's registers, shared memory,
spills and special instructions are compared with resources.tsv, exactly: the compiler is pinned.

Exit status: 0 built and as the table says; 1 does not compile, or differs from the table; 69 the compiler cannot be
had.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import resources
import toolchain

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Spills and local memory are judged by the table, where a kernel can have a reason for them; all else that the compiler
# warns of is an error. Default arithmetic: IEEE division and square root, subnormals kept, no fast approximations.
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings")
UNAVAILABLE = 69


class Failed(Exception):
    """A kernel does not compile."""


@dataclass(frozen=True)
class Product:
    """One output file: a source compiled for one target."""

    source: Path
    target: str  # compute_80 or sm_XX

    @property
    def name(self):
        return f"{self.source.stem}.ptx" if self.target == "compute_80" else f"{self.source.stem}.{self.target}.cubin"

    @property
    def flags(self):
        return (*FLAGS, f"-arch={self.target}", "-ptx" if self.target == "compute_80" else "-cubin")

    def key(self):
        """Changes with all that shapes the output: sources, flags, compiler, and this reading of it."""
        inputs = [self.source, *sorted(HERE.glob("*.cuh")), HERE / "resources.py", toolchain.REQUIREMENTS]
        digest = hashlib.sha256(repr(self.flags).encode())
        for path in inputs:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


class Outputs:
    """The output directory, with a record of each product beside it: the key it was built from, and its rows."""

    def __init__(self, path):
        self.path = path
        self.records = path / ".records"

    def rows(self, product):
        """The rows of an up-to-date product; None when it must be built."""
        record = self.records / f"{product.name}.json"
        if not record.is_file() or not (self.path / product.name).is_file():
            return None
        record = json.loads(record.read_text())
        if record["key"] != product.key():
            return None
        return {(row["kernel"], row["arch"]): row for row in record["rows"]}

    def build(self, product, toolkit):
        """Compiles one product; the record goes last, so that an interrupted build is repeated."""
        self.records.mkdir(parents=True, exist_ok=True)
        key = product.key()
        unfinished = self.records / f"{os.getpid()}.{product.name}"
        # Relative to the source, so that the output does not depend on where the checkout lies.
        command = [toolkit / "bin" / "nvcc", *product.flags, "-o", unfinished, product.source.name]
        done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            unfinished.unlink(missing_ok=True)
            raise Failed(f"{product.source.name} does not compile for {product.target}:\n{done.stdout.rstrip()}")
        rows = {} if product.target == "compute_80" else resources.of_cubin(toolkit, unfinished, product.target)
        unfinished.rename(self.path / product.name)
        (self.records / f"{product.name}.json").write_text(json.dumps({"key": key, "rows": list(rows.values())}))
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
    products = [Product(source, target) for source in sources for target in ("compute_80", *ARCHITECTURES)]
    outputs = Outputs(arguments.out.resolve())
    try:
        built = build_all(outputs, products, arguments)
    except toolchain.Unavailable as error:
        print(f"build.py: the CUDA compiler cannot be had: {error}", file=sys.stderr)
        return UNAVAILABLE
    except Failed as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    outputs.remove_strangers(products)
    rows = {key: row for rows in built.values() for key, row in rows.items()}
    print(resources.printed(rows))
    reasons = resources.read_table()[1]
    resources.write_table(rows, reasons, arguments.out / "table.tsv", header="")
    if arguments.bless:
        resources.write_table(rows, {key: reason for key, reason in reasons.items() if key in rows})
    return report(sources, built, rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Builds the CUDA artifacts and checks them against resources.tsv.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the artifacts, such as target/cuda")
    parser.add_argument("--cache", type=Path, default=toolchain.default_cache(), help="directory of the compiler")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="compilations at once")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compile nothing: fail unless all is up to date")
    mode.add_argument("--bless", action="store_true", help="rewrite resources.tsv from what was built")
    return parser.parse_args()


def build_all(outputs, products, arguments):
    """The rows of every product, building those that are not up to date."""
    rows = {product: outputs.rows(product) for product in products}
    stale = [product for product in products if rows[product] is None]
    if stale and arguments.check:
        raise Failed("not up to date: " + ", ".join(product.name for product in stale))
    if stale:
        toolkit = toolchain.toolkit(arguments.cache.resolve())
        with ThreadPoolExecutor(max_workers=arguments.jobs) as pool:
            built = pool.map(lambda product: outputs.build(product, toolkit), stale)
            rows.update(zip(stale, built))
    return rows


def report(sources, built, rows):
    """Prints all that is wrong; the exit status."""
    wrong = [*resources.differences(rows), *resources.unexplained(rows)]
    for source in sources:
        of_source = {}
        for product in built:
            if product.source == source:
                of_source |= built[product]
        wrong += resources.missing_instructions(source, of_source)
    for message in wrong:
        print(f"build.py: {message}", file=sys.stderr)
    if wrong:
        print("build.py: where the change is meant, `build.py --bless` rewrites resources.tsv", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
