#!/bin/bash
# tools.sh [DIR]: puts CUDA 13.0's compilers into DIR (default target/cuda): nvcc, ptxas, cuobjdump, nvdisasm, NVRTC;
# 500 MB from PyPI, no driver. 13.0 and not later: what it makes is taken by every driver for CUDA 13.
set -euo pipefail
dir=${1:-$(dirname "$0")/../target/cuda}
if [ -x "$dir/nvidia/cu13/bin/nvcc" ]; then
    exit 0
fi
python=python3
"$python" -m pip --version >/dev/null 2>&1 || python=/usr/bin/python3
mkdir -p "$dir"
new=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$new"' EXIT
PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$new/all" \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51 nvidia-cuda-nvrtc==13.0.88
"$new/all/nvidia/cu13/bin/nvcc" --version >/dev/null
# all or nothing, so that a download that was cut short is done again
rm -rf "$dir"
mv "$new/all" "$dir"
