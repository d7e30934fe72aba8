#!/bin/bash
# build.sh [OUT]: makes the PTX that the binary carries for machines without NVRTC, OUT/fwi_sm80.ptx (no cluster kernels)
# and OUT/fwi_sm90.ptx (with them), in kernels/ptx by default. Run it after every change of a .cu or .cuh and commit both.
# The compiler is taken from FWI_CUDA_TOOLS, default target/cuda, and fetched where it is absent.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${1:-$here/ptx}")
tools=$(realpath -m "${FWI_CUDA_TOOLS:-$here/../target/cuda}")
cd "$here"
if [ ! -x "$tools/nvidia/cu13/bin/nvcc" ]; then
    ./tools.sh "$tools"
fi
export PATH="$tools/nvidia/cu13/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# what src/wave/cuda/compile.rs computes of the embedded sources
mapfile -t sources < <(printf '%s\n' *.cu *.cuh | LC_ALL=C sort)
sha=$(sha256sum "${sources[@]}" | sha256sum | cut -d ' ' -f 1)

for arch in 80 90; do
    nvcc -std=c++17 -fmad=false -arch=compute_$arch -ptx -o "$work/all.ptx" fwi.cu
    # a hint about partly used loads that only new drivers know
    grep -v '\.pragma "used_bytes_mask' "$work/all.ptx" >"$work/full.ptx"
    # The compiler writes PTX ISA 9.0, which drivers before R580 refuse. ptxas knows which version each instruction needs:
    # the oldest that it takes is declared. Checked with the ptxas of CUDA 11.8, 12.2 and 13.0: plain kernels assemble
    # as 7.4, kernels with clusters as 7.8, so that drivers from R520 on take them. Older drivers lack other things.
    for isa in 7.4 7.8 8.0 8.1 8.2 8.3 8.4 8.5 8.6 8.7 8.8 9.0; do
        sed "s/^\.version .*/.version $isa/" "$work/full.ptx" >"$work/isa.ptx"
        if ptxas -arch=sm_$arch -o "$work/isa.cubin" "$work/isa.ptx" 2>"$work/log"; then
            { echo "// sources sha256 $sha"; cat "$work/isa.ptx"; } >"$work/fwi_sm$arch.ptx"
            break
        fi
    done
    if [ ! -e "$work/fwi_sm$arch.ptx" ]; then
        cat "$work/log" >&2
        exit 1
    fi
    mv "$work/fwi_sm$arch.ptx" "$out/fwi_sm$arch.ptx"
    echo "fwi_sm$arch.ptx: PTX ISA $isa, $(grep -c '^\.visible \.entry' "$out/fwi_sm$arch.ptx") kernels"
done
