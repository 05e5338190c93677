#!/bin/sh
# Export a checkpoint of yours, prove it equal to PyTorch, answer: sh samples/5_export.sh [CHECKPOINT] [FOLDER]
# A checkpoint is a student.pt or a Hugging Face directory, see docs/checkpoints.md. Needs: pip install '.[cpu,train,export]'
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
ckpt=${1:-samples/student.pt}
bundle=${2:-runs/own}/student.bundle
"$python" -m export.onnx --ckpt "$ckpt" --out "$bundle"
"$python" -m export.verify "$bundle" --ckpt "$ckpt" --prompts 8
"$python" -m runtime.generate "$bundle" "$(cat samples/prompt_math.txt)" --show
