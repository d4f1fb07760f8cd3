#!/usr/bin/env python3
"""stub_cuda_libraries.py VENV: writes VENV/stubs, empty stand-ins for the CUDA libraries that torch links but a CPU run never calls.

The dynamic linker wants every library named by NEEDED to exist, with the symbols and symbol versions that torch refers to.
So each missing library gets a stub that defines just those; calling one would crash, and no CPU run does.
"""

import collections
import pathlib
import re
import subprocess
import sys

CUDA_LIBRARY = re.compile(r"lib(cu|nccl|nvrtc|nvshmem|nvJitLink|nvToolsExt)")


def readelf(*arguments):
    """Lines that readelf prints."""
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=False).stdout.splitlines()


class Requirements:
    """What torch's libraries ask of the missing ones."""

    def __init__(self, present):
        self.present = present
        self.missing = set()
        self.library_of_version = {}
        self.wanted = collections.defaultdict(set)  # symbol version ("" when none) -> names
        self.defined = set()

    def add(self, library):
        """Reads one of torch's libraries."""
        for line in readelf("-d", library):
            needed = re.search(r"NEEDED.*\[(.+)\]", line)
            if needed and CUDA_LIBRARY.match(needed[1]) and needed[1] not in self.present:
                self.missing.add(needed[1])
        self._add_versions(library)
        self._add_symbols(library)

    def _add_versions(self, library):
        current = None
        for line in readelf("-V", library):
            if file := re.search(r"File: (\S+)", line):
                current = file[1]
            if (name := re.search(r"Name: (\S+)\s+Flags", line)) and current:
                self.library_of_version[name[1]] = current

    def _add_symbols(self, library):
        for line in readelf("--dyn-syms", library):
            columns = line.split()
            if len(columns) < 8:
                continue
            name, _, version = columns[7].partition("@")
            if columns[6] == "UND":
                self.wanted[version.lstrip("@")].add(name)
            else:
                self.defined.add(name)

    def symbols(self):
        """library -> version -> names; symbols without a version go to the library whose name they begin with."""
        result = {library: collections.defaultdict(set) for library in self.missing}
        stem = {library: re.sub(r"^lib|\.so.*$|_host", "", library).lower() for library in self.missing}
        for version, names in self.wanted.items():
            if version:
                library = self.library_of_version.get(version)
                if library in result:
                    result[library][version] |= names
                continue
            for name in names - self.defined:
                owners = [library for library in result if name.lower().startswith(stem[library])]
                if owners:
                    result[max(owners, key=lambda library: len(stem[library]))][""].add(name)
        return result


def write_stub(directory, library, versions):
    """Compiles one stub with gcc."""
    source, script = directory / "stub.c", directory / "stub.map"
    source.write_text("".join(f"char {name}[64];\n" for names in versions.values() for name in sorted(names)))
    script.write_text("".join(
        f"{version} {{ global: {' '.join(name + ';' for name in sorted(names))} }};\n"
        for version, names in versions.items() if version))
    command = ["gcc", "-shared", "-w", "-o", directory / library, source, f"-Wl,-soname,{library}"]
    if any(versions):
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, check=True)
    source.unlink()
    script.unlink()


def main():
    venv = pathlib.Path(sys.argv[1])
    stubs = venv / "stubs"
    stubs.mkdir(exist_ok=True)
    torch = [p for site in venv.glob("lib/python3*/site-packages/torch/lib") for p in site.glob("*.so*")]
    nvidia = [p for site in venv.glob("lib/python3*/site-packages/nvidia") for p in site.rglob("*.so*")]
    requirements = Requirements({p.name for p in torch + nvidia})
    for library in torch:
        requirements.add(library)
    for library, versions in sorted(requirements.symbols().items()):
        write_stub(stubs, library, versions)
        print(f"stub {library}: {sum(map(len, versions.values()))} symbols")


if __name__ == "__main__":
    main()
