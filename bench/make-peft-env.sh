#!/usr/bin/env bash
# A CPU environment with torch, transformers and peft from PyPI: the peer of `make bench` and the judge of `make adapter-check`.
# No test of `make test` needs it.
#
#   bench/make-peft-env.sh [DIR]     DIR: ${XDG_CACHE_HOME:-~/.cache}/ballast/peft-env (about 3 GB, a few minutes)
#
# PyPI's torch wheel links CUDA libraries of several gigabytes that a CPU run never calls. They are not installed:
# bench/stub_cuda_libraries.py writes empty stand-ins, and DIR/python starts the interpreter with them in its library path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(realpath -m "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/ballast/peft-env}")

if [ -e "$dir/complete" ]; then
    echo "peft environment: $dir (already there)"
    exit 0
fi

python3 -m venv "$dir"
install=("$dir/bin/pip" install --quiet --disable-pip-version-check)
"${install[@]}" --no-deps torch==2.15.0 triton==3.9.0 nvidia-cuda-runtime nvidia-cuda-cupti
"${install[@]}" --no-deps transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 huggingface_hub==2.4.0
"${install[@]}" numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3 gguf==0.19.0 \
    sympy networkx jinja2 fsspec filelock typing_extensions setuptools \
    regex packaging pyyaml requests tqdm psutil httpx httpcore2 httpx2 hf-xet typer rich click anyio truststore
python3 "$here/stub_cuda_libraries.py" "$dir"

cat > "$dir/python" <<PYTHON
#!/bin/sh
# The environment's interpreter, off line and on the CPU.
export LD_LIBRARY_PATH="$dir/stubs\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$dir/bin/python" "\$@"
PYTHON
chmod +x "$dir/python"
"$dir/python" -c 'import torch, transformers, peft; print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)'
touch "$dir/complete"
echo "peft environment: $dir"
