"""What the machine has: a whole bundle, libraries, a device."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import sysconfig


class Unavailable(Exception):
    """This machine lacks what it takes; says what."""


@dataclasses.dataclass
class Device:
    """The device `cuda:0`, as its driver calls it."""

    name: str

    @property
    def how(self):
        """Whether what runs there is measured. The software device says in its name that it is none."""
        return "emulated" if "emulated" in self.name else "measured"


def sha256(path):
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(bundle, manifest):
    """Raises `Unavailable` unless every file of the bundle is there and whole."""
    for name, want in manifest["files"].items():
        path = bundle / name
        if not path.is_file():
            raise Unavailable(f"{path} is missing: unpack the bundle again")
        if sha256(path) != want:
            raise Unavailable(f"{path} is not what MANIFEST.json says: unpack the bundle again")


def environment(scratch):
    """This process's environment, with the loader's path extended by the libraries of NVIDIA's wheels, if pip installed
    them for this interpreter: torch brings cuBLASLt and NCCL so. What is on the path already comes first."""
    path = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    wheels = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia"
    found = sorted({library.parent for name in ("libcublasLt.so.*", "libnccl.so.2") for library in wheels.rglob(name)})
    # Wheels have NCCL under the name of its interface alone.
    for library in wheels.rglob("libnccl.so.2"):
        links = scratch / "links"
        links.mkdir(exist_ok=True)
        (links / "libnccl.so").symlink_to(library)
        found.append(links)
        break
    if found:
        print(f"test-gpu: libraries of wheels: {' '.join(map(str, found))}", file=sys.stderr)
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*path, *map(str, found)])}


def device(ballast, environment):
    """The device that tests and benchmark run on. Raises `Unavailable` with the doctor's reason."""
    command = [ballast, "doctor", "--device", "cuda:0", "--json"]
    try:
        doctor = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"ballast doctor cannot be run: {error}") from error
    if doctor.returncode != 0:
        lines = doctor.stderr.strip().splitlines() or [f"ballast doctor ended with {doctor.returncode}"]
        raise Unavailable(next((line for line in lines if line.startswith("error[")), lines[-1]))
    return Device(json.loads(doctor.stdout)["cuda"]["devices"][0]["name"])
