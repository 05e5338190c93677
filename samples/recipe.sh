#!/usr/bin/env bash
# From nothing to students of all three methods, exported, evaluated, in one table. `make train` runs this.
#
#   TASK=pronounce|math|code   what is learned (default pronounce)
#   PLAN=1                     print the stages and their expected minutes, run nothing
#   SMOKE=1                    every stage, tiny: shows that it runs, teaches nothing
#   RUNS=DIR                   where everything is written (default runs/TASK)
#
# Stop it whenever you like and run it again, days later too: a finished stage is listed in RUNS/stages.tsv, and a stopped
# training goes on from its last resumable checkpoint. Nothing has to be edited by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
TASK=${TASK:-pronounce}
RUNS=${RUNS:-runs/$TASK}

# stage NAME, expected minutes on two cores with AMX or AVX-512 BF16, and with AVX2 alone, COMMAND.
# n A B: A, or B in a smoke run. of A B: A of pronounce, B of the other tasks.
recipe() {
  # Tokens of prompt and answer; of pronounce room for 20 long words.
  local size=(--context 512)
  if [ "$TASK" = pronounce ]; then size=(--context 448 --canvas "$(n 176 32)"); fi
  # A sentence is hardly ever right in every word, so wrong decodings of pronounce stay; so do those of a smoke run.
  local right=(--only-right)
  if [ "$TASK" = pronounce ] || [ -n "${SMOKE:-}" ]; then right=(--no-only-right); fi
  local training=(--task "$TASK" --dtype bf16 --save-every 250)
  if [ -z "${SMOKE:-}" ]; then training+=(--compile); fi

  # An autoregressive model of the student's size: the student is compared with it, and the teacher starts from it. Of
  # pronounce it first learns single words: which letters a sentence has come to is slow to learn together with them.
  # Six key-value heads find a word's letters sooner than one does. Its words are few, so they are seen some
  # eight times; a tenth of each layer's channels is left out meanwhile, or new words lag behind.
  local init=()
  if [ "$TASK" = pronounce ]; then
    training+=(--dropout 0.1)
    stage words 42 110 blockstep train teacher --objective causal "${training[@]}" --task pronounce_short \
      --optimizer muon --learning-rate 6e-3 --heads 6 --kv-heads 6 --head-dim 32 \
      --steps "$(n 10000 2)" --batch "$(n 128 4)" "${size[@]}" --out "$RUNS/words.pt"
    init=(--init "$RUNS/words.pt" --optimizer muon --learning-rate 2e-3)
  fi
  stage baseline 10 40 blockstep train teacher --objective causal "${training[@]}" "${init[@]}" \
    --steps "$(n "$(of 900 4000)" 2)" --batch "$(n 64 4)" "${size[@]}" --out "$RUNS/baseline.pt"

  # A bidirectional masked-diffusion model; every second update is a causal one, which keeps what the baseline knows.
  stage teacher 12 45 blockstep train teacher --objective masked "${training[@]}" --init "$RUNS/baseline.pt" \
    --steps "$(n "$(of 800 2500)" 2)" --batch "$(n 32 4)" --learning-rate 1e-3 --seed 1 "${size[@]}" \
    --out "$RUNS/teacher.pt"

  # Its decodings, one token per step, with the order in which tokens were accepted: what CDLM learns from.
  stage trajectories 8 25 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" --temperatures 0 \
    --count "$(n "$(of 600 1000)" 4)" --shard "$(n 128 4)" --out "$RUNS/trajectories"

  # Its answers, several tokens per step, which is sooner: what dParallel learns from.
  stage answers 16 60 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" --temperatures 0 \
    --threshold 0.98 --count "$(n "$(of 1500 3000)" 4)" --shard "$(n 256 4)" --seed 1 --out "$RUNS/answers"

  # One student per method, all block-causal, all from the teacher's weights, with a share of the next-token loss.
  local student=("${training[@]}" --teacher "$RUNS/teacher.pt" --next-token 1 --learning-rate 6e-4 --seed 2)
  stage cdlm 10 35 blockstep train distill --method cdlm "${student[@]}" --weights 0.3,0.15,1 \
    --trajectories "$RUNS/trajectories" "${right[@]}" --steps "$(n "$(of 400 800)" 2)" --batch "$(n 32 2)" \
    --out "$RUNS/cdlm.pt"
  stage cd4lm 7 25 blockstep train distill --method cd4lm "${student[@]}" --temperature 1 --shares 0.3,0.1 \
    --steps "$(n "$(of 400 800)" 2)" --batch "$(n 32 2)" --out "$RUNS/cd4lm.pt"
  stage dparallel 12 45 blockstep train distill --method dparallel "${student[@]}" --certainty 0.3 \
    --trajectories "$RUNS/answers" "${right[@]}" --steps "$(n "$(of 400 800)" 2)" --batch "$(n 32 2)" \
    --out "$RUNS/dparallel.pt"

  # Each student's threshold: the fewest forward passes at which it is not below its teacher, on validation problems.
  stage teacher-valid 3 9 blockstep train evaluate --ckpt "$RUNS/teacher.pt" --task "$TASK" --split valid \
    --count "$(n 1000 4)" --out "$RUNS/teacher-valid.json"
  local method
  for method in cdlm cd4lm dparallel; do
    stage "$method-threshold" 5 15 blockstep train calibrate --ckpt "$RUNS/$method.pt" --target 0.5 \
      --teacher-report "$RUNS/teacher-valid.json" --out "$RUNS/$method-threshold.json"
  done

  # The engines that run without PyTorch, in fp32 and int8, each compared with PyTorch before it is written.
  local precision
  for precision in fp32 int8; do
    stage "export-$precision" 1 2 blockstep export onnx --ckpt "$RUNS/cdlm.pt" --precision "$precision" --top-k 32 \
      --out "$RUNS/student.bundle"
  done

  # Every model once on the test split, which nothing above has seen.
  # The teacher, which runs its whole canvas once per token, takes longer than all others together.
  local model
  for model in baseline cdlm cd4lm dparallel; do
    evaluate "$model" 1 2 --ckpt "$RUNS/$model.pt"
  done
  evaluate ort-fp32 1 2 --bundle "$RUNS/student.bundle" --engine ort-fp32
  evaluate ort-int8 1 2 --bundle "$RUNS/student.bundle" --engine ort-int8
  evaluate teacher 12 40 --ckpt "$RUNS/teacher.pt"

  # What was made, by which versions, in which time; and the table.
  stage table 1 1 python samples/study/recipe_table.py "$RUNS"
}

evaluate() { # NAME, MINUTES, MINUTES, options that name the model
  local split name=$1 fast=$2 slow=$3
  shift 3
  for split in $(splits); do
    stage "$name-$split" "$fast" "$slow" blockstep train evaluate "$@" --task "$TASK" --split "$split" \
      --count "$(n 10000 4)" --out "$RUNS/$name-$split.json"
  done
}

splits() {
  case $TASK in
    pronounce) echo test test_sentences ;;
    *) echo test test_surface ;;
  esac
}

# What follows runs the stages.

of() { if [ "$TASK" = pronounce ]; then echo "$1"; else echo "$2"; fi; }

n() { if [ -n "${SMOKE:-}" ]; then echo "$2"; else echo "$1"; fi; }

fail() {
  echo "error: $*" >&2
  exit 2
}

fast_cpu() { grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; }

minutes() { if fast_cpu; then echo "$1"; else echo "$2"; fi; }

# The command that a finished stage was run with, or nothing.
finished() { [ -f "$RUNS/stages.tsv" ] && awk -F'\t' -v stage="$1" '$1 == stage { print $3 }' "$RUNS/stages.tsv"; }

stage() { # NAME, MINUTES, MINUTES, COMMAND
  local name=$1 expected before
  expected=$(minutes "$2" "$3")
  shift 3
  before=$(finished "$name" || true)
  if [ -n "$planning" ]; then
    if [ -n "$before" ]; then expected=0; fi
    total=$((total + expected))
    printf '%-28s %4s min  %s\n' "$name" "$expected" "${before:+done}"
    return
  fi
  if [ "$before" = "$*" ]; then return; fi
  if [ -n "$before" ]; then
    fail "$RUNS has the stage $name of another command: $before; expected: $*; give RUNS another folder, or delete" \
      "this one to start anew"
  fi
  current=$name started=$SECONDS
  echo "== $name (about $expected min): $*"
  "$@"
  printf '%s\t%s\t%s\n' "$name" "$(spent)" "$*" >> "$RUNS/stages.tsv"
  rm -f "$RUNS/$name.seconds"
  current=
}

# Seconds of the current stage, those before it was stopped included.
spent() { echo $((SECONDS - started + $(cat "$RUNS/$current.seconds" 2> /dev/null || echo 0))); }

keep_time() {
  local seconds
  if [ -n "${current:-}" ]; then
    seconds=$(spent)
    echo "$seconds" > "$RUNS/$current.seconds"
    echo "stopped in the stage $current after $((seconds / 60)) min; the same command goes on from here" >&2
  fi
}

case $TASK in pronounce | math | code) ;; *) fail "TASK is '$TASK'; expected pronounce, math or code" ;; esac
command -v blockstep > /dev/null || fail "blockstep is not on PATH; run this with: make train"
[ -n "${SMOKE:-}" ] || command -v c++ > /dev/null || fail "there is no C++ compiler, which torch.compile needs; on Debian: apt install g++"
mkdir -p "$RUNS"

planning=yes total=0
recipe
echo "$((total / 60)) h $((total % 60)) min to go, in $RUNS"
if [ -n "${PLAN:-}" ]; then exit; fi
planning=
trap keep_time EXIT
trap 'exit 130' INT TERM
recipe
