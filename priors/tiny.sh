#!/bin/sh
# The whole recipe on a tiny configuration, in a few minutes on a CPU: synthesise, train, relabel, train on, export, use.
# Usage: priors/tiny.sh [FWI [PYTHON]]; FWI is the binary (default: fwi), PYTHON one with requirements.txt installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
fwi=${1:-fwi}
python=${2:-python3}
case $fwi in */*) fwi=$(cd "$(dirname "$fwi")" && pwd)/$(basename "$fwi") ;; esac
cd "$here"
mkdir -p out/tiny/held-out out/tiny/unlabelled
"$fwi" synth all -n 600 -o out/tiny/train.h5 --half --every 8 --middle-flip --seed 1
"$fwi" synth all -n 100 -o out/tiny/held-out/held_out.h5 --half --every 8 --middle-flip --seed 2
"$python" -m recipe.train configs/tiny.toml
# gathers without maps: their predictions, modelled exactly, are training pairs too
"$fwi" synth all -n 40 -o out/tiny/unlabelled/gathers.h5 --seed 3
"$python" -m recipe.pseudo out/tiny/model.pt out/tiny/unlabelled/gathers.h5 -o out/tiny/train-pseudo.h5 --fwi "$fwi"
"$python" -m recipe.train configs/tiny.toml --samples 9000
"$python" -m recipe.export out/tiny/model.pt out/tiny/prior --config configs/tiny.toml
"$fwi" prior inspect out/tiny/prior/model.onnx
"$fwi" prior predict "$here/../examples/data/gather.npy" --prior out/tiny/prior/model.onnx -o out/tiny/predicted.npy
# a prior that was exported can be trained on
"$python" -m recipe.train configs/tiny.toml --start out/tiny/prior/model.onnx --out out/tiny-on --samples 640
# and all of it at once, as on a machine with a GPU
sed 's#out/tiny/#out/tiny-together/#; s#out/tiny"#out/tiny-together"#' configs/tiny.toml > out/tiny-together.toml
"$python" -m recipe.together out/tiny-together.toml out/tiny-together/prior --minutes 0.5 --fwi "$fwi"
"$fwi" prior inspect out/tiny-together/prior/model.onnx
