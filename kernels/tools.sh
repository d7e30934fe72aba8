#!/bin/bash
# tools.sh [DIR]: puts CUDA 13.0's compilers into DIR (default target/cuda): nvcc, ptxas, cuobjdump, nvdisasm, NVRTC;
# 500 MB from PyPI, no driver. 13.0 and not later: what it makes is taken by every driver for CUDA 13.
set -euo pipefail
dir=${1:-$(dirname "$0")/../target/cuda}
if [ -e "$dir/complete" ]; then
    exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"
python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action ignore --target "$dir" \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51 \
    nvidia-cuda-nvrtc==13.0.88
"$dir/nvidia/cu13/bin/nvcc" --version >/dev/null
touch "$dir/complete"
