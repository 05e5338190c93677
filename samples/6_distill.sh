#!/bin/sh
# Distil a student on data of yours: sh samples/6_distill.sh [DATA.jsonl] [TEACHER] [FOLDER] [PROMPTS] [UPDATES]
# A line is {"prompt": ..., "answer": ...}, with "tests" where the answer is code. The numbers here only show the way:
# thousands of prompts and hours of updates make a student. Needs: pip install '.[train]'
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
data=${1:-samples/own.jsonl}
teacher=${2:-samples/teacher.pt}
out=${3:-runs/own}
"$python" -m train.collect --ckpt "$teacher" --data "$data" --out "$out/trajectories" --count "${4:-24}" --temperatures 0
"$python" -m train.distill --method cdlm --teacher "$teacher" --trajectories "$out/trajectories" --data "$data" \
    --out "$out/student.pt" --steps "${5:-20}" --batch 8 --attention causal_context --next-token 1
"$python" -m train.evaluate --ckpt "$out/student.pt" --data "$data" --split all --count 4
echo "next: sh samples/5_export.sh $out/student.pt $out"
