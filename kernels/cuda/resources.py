"""What ptxas made of each kernel: read from the cubins, held against the committed resources.tsv."""

import fnmatch
import re
import subprocess
from collections import Counter
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "resources.tsv"
COLUMNS = ("kernel", "arch", "registers", "shared", "local", "spills", "HMMA", "LDSM", "LDGSTS")
HEADER = """\
# What ptxas made of each kernel; checked by build.py, rewritten by `build.py --bless`. registers: of a thread. shared:
# static bytes of a block. local: bytes of local memory of a thread. spills: instructions that access local memory.
# HMMA, LDSM, LDGSTS: tensor-core, ldmatrix and cp.async instructions. Local memory or spills need a reason, written by
# hand in the last column.
"""


def of_cubin(toolkit, cubin, arch):
    """The rows of a cubin's kernels, as {(kernel, arch): row}; a row maps each column to its value."""
    usage = cuobjdump(toolkit, "-res-usage", cubin)
    instructions = instruction_counts(cuobjdump(toolkit, "-sass", cubin))
    rows = {}
    for kernel, facts in re.findall(r"Function (\w+):\s+(REG:.*)", usage):
        size = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", facts)}
        count = instructions[kernel]
        rows[kernel, arch] = {
            "kernel": kernel,
            "arch": arch,
            "registers": size["REG"],
            "shared": size["SHARED"],
            "local": size["STACK"] + size["LOCAL"],
            "spills": count["STL"] + count["LDL"],
            **{opcode: count[opcode] for opcode in ("HMMA", "LDSM", "LDGSTS")},
        }
    return rows


def cuobjdump(toolkit, what, cubin):
    command = [toolkit / "bin" / "cuobjdump", what, cubin]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def instruction_counts(sass):
    """How often each opcode (without its modifiers) stands in each kernel."""
    counts, kernel = {}, None
    for line in sass.splitlines():
        if function := re.match(r"\s+Function : (\w+)", line):
            kernel = counts.setdefault(function[1], Counter())
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9]+)", line):
            kernel[instruction[1]] += 1
    return counts


def read_table():
    """The committed rows and the reasons beside them, both by (kernel, arch)."""
    rows, reasons = {}, {}
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    for line in lines:
        if line.startswith("#") or line.startswith("kernel\t"):
            continue
        *values, reason = line.split("\t") if line.count("\t") == len(COLUMNS) else [*line.split("\t"), ""]
        row = {name: value if name in ("kernel", "arch") else int(value) for name, value in zip(COLUMNS, values)}
        rows[row["kernel"], row["arch"]] = row
        if reason:
            reasons[row["kernel"], row["arch"]] = reason
    return rows, reasons


def write_table(rows, reasons, path=TABLE, header=HEADER):
    lines = ["\t".join((*COLUMNS, "reason"))]
    for key in sorted(rows, key=lambda key: (key[0], int(key[1].removeprefix("sm_")))):
        lines.append("\t".join(str(rows[key][name]) for name in COLUMNS) + "\t" + reasons.get(key, ""))
    path.write_text(header + "".join(line.rstrip() + "\n" for line in lines))


def differences(rows):
    """How the rows differ from the committed table, one message each."""
    committed, _ = read_table()
    for key in sorted(rows.keys() | committed.keys()):
        is_row, was_row = rows.get(key), committed.get(key)
        if is_row is None:
            yield f"{' '.join(key)}: stands in the table, but is not compiled"
        elif was_row is None:
            yield f"{' '.join(key)}: does not stand in the table\n    built:     {in_words(is_row)}"
        elif is_row != was_row:
            yield f"{' '.join(key)}: \n    committed: {in_words(was_row)}\n    built:     {in_words(is_row)}"


def unexplained(rows):
    """Kernels with local memory and no reason for it in the table."""
    _, reasons = read_table()
    for key, row in sorted(rows.items()):
        if (row["local"] or row["spills"]) and key not in reasons:
            yield f"{' '.join(key)}: local memory without a reason in the table: {in_words(row)}"


def missing_instructions(source, rows):
    """Kernels that lack an instruction they are there for. A source says so in a line `// sass: PATTERN OPCODE...`."""
    for pattern, opcodes in re.findall(r"^// sass: (\S+) (.*)$", source.read_text(), re.MULTILINE):
        meant = [row for row in rows.values() if fnmatch.fnmatch(row["kernel"], pattern)]
        if not meant:
            yield f"{source.name}: no kernel matches `// sass: {pattern}`"
        for row in meant:
            for opcode in opcodes.split():
                if not row[opcode]:
                    yield f"{row['kernel']} {row['arch']}: no {opcode}, against {source.name}'s `// sass: {pattern}`"


def in_words(row):
    return ", ".join(f"{name} {row[name]}" for name in COLUMNS[2:])


def printed(rows):
    """The table for people."""
    lines = [f"{'kernel':<40} {'architecture':<14} {'registers':>9} {'shared':>8} {'spills':>6}"]
    for key in sorted(rows, key=lambda key: (key[0], int(key[1].removeprefix("sm_")))):
        row = rows[key]
        sizes = f"{row['registers']:>9} {row['shared']:>8} {row['spills']:>6}"
        lines.append(f"{row['kernel']:<40} {row['arch']:<14} {sizes}")
    return "\n".join(lines)
