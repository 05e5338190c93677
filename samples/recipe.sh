#!/usr/bin/env bash
# From nothing to students of three methods, exported, evaluated, in one table. `make train` runs this.
#
#   TASK=pronounce|intents|math|code   what is learned (default pronounce)
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

# stage NAME, expected minutes of pronounce, of intents, of the other tasks, COMMAND. Minutes are for two cores: with AMX or
# AVX-512 BF16 / with AVX2 alone. n A B: A, or B in a smoke run. of A B C: A of pronounce, B of intents, C of the others.
recipe() {
  # Tokens of prompt and answer; the longest word of pronounce has 28 letters and as many phonemes.
  local size=(--context 512)
  if [ "$TASK" = pronounce ]; then size=(--context 64 --canvas 32); fi
  # An utterance has up to 58 tokens, more with typos; of 2048 tokens each word and each value of a form is one, so an
  # answer has 21 and its end token: one block.
  if [ "$TASK" = intents ]; then size=(--context 128 --canvas 24 --block 24 --vocab 2048); fi
  # Wrong decodings are no examples; an untrained model of a smoke run has no others.
  local right=(--only-right)
  if [ -n "${SMOKE:-}" ]; then right=(--no-only-right); fi
  local training=(--task "$TASK" --dtype bf16 --save-every 250)
  if [ -z "${SMOKE:-}" ]; then training+=(--compile); fi

  # An autoregressive model of the student's size: the student is compared with it, and the teacher starts from it. Of
  # pronounce six key-value heads find a word's letters sooner than one does. Its words are seen some 14 times; a
  # tenth of each layer's channels is left out meanwhile, here and in all later stages, or new words lag behind.
  local new=() masked=(--learning-rate 1e-3)
  if [ "$TASK" = pronounce ]; then training+=(--dropout 0.1); fi
  if [ "$TASK" = pronounce ] || [ "$TASK" = intents ]; then
    new=(--optimizer muon --learning-rate 6e-3 --heads 6 --kv-heads 6 --head-dim 32)
    masked=(--optimizer muon --learning-rate 3e-3)
  fi
  stage baseline 36/118 10/38 10/40 blockstep train teacher --objective causal "${training[@]}" "${new[@]}" \
    --steps "$(n "$(of 12000 2500 4000)" 2)" --batch "$(n "$(of 128 64 64)" 4)" "${size[@]}" --out "$RUNS/baseline.pt"

  # A bidirectional masked-diffusion model; every second update is a causal one, which keeps what the baseline knows.
  stage teacher 6/27 11/40 12/45 blockstep train teacher --objective masked "${training[@]}" \
    --init "$RUNS/baseline.pt" --steps "$(n "$(of 1000 1300 2500)" 2)" --batch "$(n "$(of 128 64 32)" 4)" "${masked[@]}" \
    --seed 1 "${size[@]}" --out "$RUNS/teacher.pt"

  # Its decodings, one token per step, with the order in which tokens were accepted: what CDLM learns from.
  stage trajectories 3/8 2/6 8/25 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" \
    --temperatures 0 --count "$(n "$(of 6000 2000 1000)" 4)" --shard "$(n "$(of 512 512 128)" 4)" --out "$RUNS/trajectories"

  # Its answers, several tokens per step, which is sooner: what dParallel learns from.
  stage answers 2/6 1/4 16/60 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" \
    --temperatures 0 --threshold 0.98 --count "$(n "$(of 8000 2000 3000)" 4)" --shard "$(n "$(of 512 512 256)" 4)" --seed 1 \
    --out "$RUNS/answers"

  # One student per method, with a share of the next-token loss, block-causal from the teacher's weights. Of pronounce the
  # baseline knows more than the teacher: its students start from it, and see what is committed causally as it does, so
  # that they can check their own drafts (mode speculative).
  local student=("${training[@]}" --teacher "$RUNS/teacher.pt" --next-token 1 --learning-rate 6e-4 --seed 2)
  if [ "$TASK" = pronounce ]; then student+=(--student "$RUNS/baseline.pt" --attention causal_context); fi
  local updates=(--steps "$(n "$(of 1000 450 800)" 2)" --batch "$(n "$(of 64 48 32)" 2)")
  stage cdlm 6/27 8/17 10/35 blockstep train distill --method cdlm "${student[@]}" --weights 0.3,0.15,1 \
    --trajectories "$RUNS/trajectories" "${right[@]}" "${updates[@]}" --out "$RUNS/cdlm.pt"
  stage cd4lm 4/13 5/8 7/25 blockstep train distill --method cd4lm "${student[@]}" --temperature 1 --shares 0.3,0.1 \
    "${updates[@]}" --out "$RUNS/cd4lm.pt"
  stage dparallel 8/42 6/15 12/45 blockstep train distill --method dparallel "${student[@]}" --certainty 0.3 \
    --trajectories "$RUNS/answers" "${right[@]}" "${updates[@]}" --out "$RUNS/dparallel.pt"

  # Each student's threshold, or mode: the fewest forward passes at which it is not below the better one of baseline and
  # teacher, on validation problems. Of words and forms that is the baseline; held to a weak teacher, a weak student
  # would do.
  local better
  better=$(of baseline baseline teacher)
  stage "$better-valid" 1/2 0/1 3/9 blockstep train evaluate --ckpt "$RUNS/$better.pt" --task "$TASK" \
    --split valid --count "$(n "$(of 2000 1000 1000)" 4)" --out "$RUNS/$better-valid.json"
  local method
  for method in cdlm cd4lm dparallel; do
    stage "$method-threshold" 3/10 1/4 5/15 calibrate "$RUNS/$method-threshold.json" --ckpt "$RUNS/$method.pt" \
      --target "$(of 1 0.5 0.5)" --teacher-report "$RUNS/$better-valid.json"
  done

  # The engines that run without PyTorch, in fp32 and int8, each compared with PyTorch before it is written.
  # Of intents the values of a form are candidates, 102 in the largest field; their probabilities are calibrated on validation problems.
  local precision candidates=()
  if [ "$TASK" = intents ]; then candidates=(--candidates 128); fi
  for precision in fp32 int8; do
    stage "export-$precision" 1/2 0/2 1/2 blockstep export onnx --ckpt "$RUNS/cdlm.pt" --precision "$precision" --top-k 32 \
      "${candidates[@]}" --out "$RUNS/student.bundle"
    if [ "$TASK" = intents ]; then
      stage "$precision-decisions" 0/0 0/3 0/0 blockstep train calibrate --decisions --bundle "$RUNS/student.bundle" \
        --engine "ort-$precision" --task "$TASK" --count "$(n 500 2)" --out "$RUNS/$precision-decisions.json"
    fi
  done

  # Every model once on the test split, which nothing above has seen.
  # The teacher, which runs its whole canvas once per token, takes longest.
  local model
  evaluate baseline 1/3 0/1 1/2 --ckpt "$RUNS/baseline.pt"
  for model in cdlm cd4lm dparallel; do
    if [ "$TASK" = pronounce ]; then
      evaluate "$model" 1/3 0/1 1/2 --ckpt "$RUNS/$model.pt" --mode speculative
      evaluate "$model-block" 1/3 0/1 1/2 --ckpt "$RUNS/$model.pt" --mode block
    else
      evaluate "$model" 1/3 0/1 1/2 --ckpt "$RUNS/$model.pt"
    fi
  done
  evaluate ort-fp32 1/2 0/1 1/2 --bundle "$RUNS/student.bundle" --engine ort-fp32
  evaluate ort-int8 1/2 0/1 1/2 --bundle "$RUNS/student.bundle" --engine ort-int8
  evaluate teacher 3/8 2/6 3/10 --ckpt "$RUNS/teacher.pt"

  # What was made, by which versions, in which time; and the table.
  stage table 1/1 1/1 1/1 python samples/study/recipe_table.py "$RUNS"
}

evaluate() { # NAME, MINUTES, MINUTES, MINUTES, options that name the model
  local split name=$1 words=$2 forms=$3 others=$4
  shift 4
  for split in $(splits); do
    stage "$name-$split" "$words" "$forms" "$others" blockstep train evaluate "$@" --task "$TASK" --split "$split" \
      --count "$(n "$(of 10000 2000 2000)" 4)" --out "$RUNS/$name-$split.json"
  done
}

# A student that is below the other model at every threshold keeps its own one; the report says by how much. The other
# model of a smoke run has nothing right, which is refused: only that message is passed over, and only there.
calibrate() { # REPORT, options
  local report=$1 said status=0
  shift
  if [ -z "${SMOKE:-}" ]; then
    blockstep train calibrate "$@" --out "$report" || [ -f "$report" ]
    return
  fi
  said=$(blockstep train calibrate "$@" --out "$report" 2>&1) || status=$?
  echo "$said" >&2
  [ "$status" = 0 ] || [ -f "$report" ] || [[ $said == *" right; expected some"* ]] || return "$status"
}

splits() {
  case $TASK in
    pronounce) echo test ;;
    intents) echo test test_surface ;;
    *) echo test test_surface test_seen test_families ;;
  esac
}

# What follows runs the stages.

of() {
  case $TASK in
    pronounce) echo "$1" ;;
    intents) echo "$2" ;;
    *) echo "$3" ;;
  esac
}

n() { if [ -n "${SMOKE:-}" ]; then echo "$2"; else echo "$1"; fi; }

fail() {
  echo "error: $*" >&2
  exit 2
}

fast_cpu() { grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; }

minutes() { if fast_cpu; then echo "${1%/*}"; else echo "${1#*/}"; fi; }

# The command that a finished stage was run with, or nothing.
finished() { [ -f "$RUNS/stages.tsv" ] && awk -F'\t' -v stage="$1" '$1 == stage { print $3 }' "$RUNS/stages.tsv"; }

stage() { # NAME, MINUTES, MINUTES, MINUTES, COMMAND
  local name=$1 expected before
  expected=$(minutes "$(of "$2" "$3" "$4")")
  shift 4
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

case $TASK in pronounce | intents | math | code) ;; *) fail "TASK is '$TASK'; expected pronounce, intents, math or code" ;; esac
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
