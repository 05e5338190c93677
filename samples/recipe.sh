#!/usr/bin/env bash
# From nothing to students of three methods (math,code: four), exported, evaluated, in one table. `make train` runs this.
#
#   TASK=pronounce|intents|math,code   what is learned (default pronounce); math or code alone too
#   PLAN=1                     print the stages and their expected minutes, run nothing
#   STUDY=1                    more rows for docs/study.md: a control of each method, full attention; not of intents
#   SMOKE=1                    every stage, tiny: shows that it runs, teaches nothing
#   RUNS=DIR                   where everything is written (default runs/TASK, runs/math-code)
#
# Stop it whenever you like and run it again, days later too: a finished stage is listed in RUNS/stages.tsv, and a stopped
# training goes on from its last resumable checkpoint. Nothing has to be edited by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
TASK=${TASK:-pronounce}
RUNS=${RUNS:-runs/${TASK/,/-}}

# stage NAME, expected minutes of pronounce, of intents, of the other tasks, COMMAND. Minutes are for two cores: with AMX or
# AVX-512 BF16 / with AVX2 alone. n A B: A, or B in a smoke run. of A B C: A of pronounce, B of intents, C of the others.
recipe() {
  local students=()
  # Tokens of prompt and answer; the longest word of pronounce has 28 letters and as many phonemes.
  local size=(--context 512 --vocab 1536)
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
  local new=(--optimizer muon --learning-rate "$(of 6e-3 6e-3 5e-3)") masked=(--optimizer muon --learning-rate 3e-3)
  if [ "$TASK" = pronounce ]; then training+=(--dropout 0.1); fi
  if [ "$TASK" = pronounce ] || [ "$TASK" = intents ]; then new+=(--heads 6 --kv-heads 6 --head-dim 32); fi
  stage baseline 36/118 10/38 18/50 blockstep train teacher --objective causal "${training[@]}" "${new[@]}" \
    --steps "$(n "$(of 12000 2500 3200)" 2)" --batch "$(n "$(of 128 64 32)" 4)" "${size[@]}" --out "$RUNS/baseline.pt"

  # A masked-diffusion model. Of pronounce and intents it is bidirectional, and every second update is a causal one, which
  # keeps what the baseline knows. Of math and code it has the students' mask, so that every update teaches all blocks.
  local attention=() start=$RUNS/baseline.pt
  if [ "$(of words forms others)" = others ]; then
    attention=(--attention causal_context)
    # Their problems have many steps, so it sees twice as many examples, and its learning rate falls twice.
    stage teacher-first 0/0 0/0 24/45 blockstep train teacher --objective masked "${attention[@]}" "${training[@]}" \
      --init "$start" --steps "$(n 3600 2)" --batch "$(n 24 4)" "${masked[@]}" --seed 1 "${size[@]}" --out "$RUNS/teacher-first.pt"
    start=$RUNS/teacher-first.pt
  fi
  stage teacher 6/27 11/40 26/50 blockstep train teacher --objective masked "${attention[@]}" "${training[@]}" \
    --init "$start" --steps "$(n "$(of 1000 1300 4000)" 2)" --batch "$(n "$(of 128 64 24)" 4)" "${masked[@]}" \
    --seed "$(of 1 1 3)" "${size[@]}" --out "$RUNS/teacher.pt"

  # Its decodings, one token per step, with the order in which tokens were accepted: what CDLM and TAD learn from.
  stage trajectories 3/8 2/6 3/3 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" \
    --temperatures 0 --count "$(n "$(of 6000 2000 2048)" 4)" --shard "$(n "$(of 512 512 256)" 4)" --out "$RUNS/trajectories"

  # Its answers, several tokens per step, which is sooner: what dParallel learns from.
  stage answers 2/6 1/4 3/2 blockstep train collect --ckpt "$RUNS/teacher.pt" --task "$TASK" \
    --temperatures 0 --threshold 0.98 --count "$(n "$(of 8000 2000 4096)" 4)" --shard "$(n "$(of 512 512 256)" 4)" --seed 1 \
    --out "$RUNS/answers"

  # One student per method, with a share of the next-token loss. They see what is committed causally, as the baseline does,
  # so that they can check their own drafts (mode speculative); those of intents see their blocks both ways. They start
  # from the teacher's weights, of pronounce from the baseline's, which knows more than its teacher.
  local student=("${training[@]}" --teacher "$RUNS/teacher.pt" --next-token 1 --seed 2)
  case $TASK in
    pronounce) student+=(--learning-rate 6e-4 --student "$RUNS/baseline.pt" --attention causal_context) ;;
    intents) student+=(--learning-rate 6e-4) ;;
    *) student+=(--optimizer muon --learning-rate 1e-3 --attention causal_context) ;;
  esac
  local updates=(--steps "$(n "$(of 1000 450 600)" 2)" --batch "$(n "$(of 64 48 32)" 2)")
  local trajectories=(--trajectories "$RUNS/trajectories" "${right[@]}") answers=(--trajectories "$RUNS/answers" "${right[@]}")
  distil cdlm 6/27 8/17 16/25 --method cdlm --weights 0.3,0.15,1 "${trajectories[@]}"
  distil cd4lm 4/13 5/8 12/20 --method cd4lm --temperature 1 --shares 0.3,0.1
  distil dparallel 8/42 6/15 12/20 --method dparallel --certainty 0.3 "${answers[@]}"
  if [ "$TASK" = math,code ]; then distil tad 0/0 0/0 16/25 --method tad "${trajectories[@]}"; fi

  # What each method adds: its control has as many updates on the same data without its own term. And the two methods
  # that also work under full attention, which has no KV cache.
  if [ -n "${STUDY:-}" ]; then
    distil cdlm-control 4/20 0/0 10/25 --method cdlm --weights 0,0,1 "${trajectories[@]}"
    distil cd4lm-control 3/10 0/0 7/20 --method cd4lm --temperature 1 --shares 0,0
    distil dparallel-control 8/42 0/0 12/20 --method dparallel --certainty 0 "${answers[@]}"
    if [ "$TASK" = math,code ]; then
      distil tad-control 0/0 0/0 10/25 --method tad --near 1 "${trajectories[@]}"
      distil cd4lm-full 0/0 0/0 7/20 --attention full --method cd4lm --temperature 1 --shares 0.3,0.1
      distil dparallel-full 0/0 0/0 12/20 --attention full --method dparallel --certainty 0.3 "${answers[@]}"
    fi
  fi

  # Each student's threshold, or mode: the fewest forward passes at which it is not below the baseline on validation
  # problems; of math and code these are of held-out families, since the baseline has nearly all others right. Held to a
  # weak teacher, a weak student would do.
  local task reports=() model report valid
  valid=$(of valid valid valid_families)
  for task in $(tasks); do
    report=baseline$(mark "$task")-$valid
    stage "$report" 1/2 0/1 1/3 blockstep train evaluate --ckpt "$RUNS/baseline.pt" --task "$task" --split "$valid" \
      --count "$(n "$(of 2000 1000 300)" 4)" --out "$RUNS/$report.json"
    reports+=("$RUNS/$report.json")
  done
  for model in "${students[@]}"; do
    if [[ $model == *-control ]]; then continue; fi # decoded by its method's threshold
    stage "$model-threshold" 3/10 1/4 8/25 calibrate "$RUNS/$model-threshold.json" --ckpt "$RUNS/$model.pt" \
      --target "$(of 1 0.5 0.5)" --teacher-report "${reports[@]}"
  done

  # The teacher's weights by the students' gate: what more forward passes would have brought without distillation.
  local undistilled=(--ckpt "$RUNS/teacher.pt" --gate)
  if [ -n "${STUDY:-}" ]; then
    stage undistilled-threshold 3/10 0/0 3/10 calibrate "$RUNS/undistilled-threshold.json" "${undistilled[@]}" \
      rule=threshold,threshold=0.98 --no-write --target "$(of 1 0.5 0.5)" --teacher-report "${reports[@]}"
  fi

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
  # The teacher, one token per forward pass, takes longest; of math and code it answers the first problems.
  local count=(10000 2000 1000) threshold
  evaluate baseline 1/3 0/1 1/2 --ckpt "$RUNS/baseline.pt"
  for model in "${students[@]}"; do
    if [ "$TASK" = intents ]; then
      evaluate "$model" 0/0 0/1 0/0 --ckpt "$RUNS/$model.pt"
      continue
    fi
    threshold=()
    if [[ $model == *-control ]]; then threshold=(--threshold "$(chosen "$RUNS/${model%-control}-threshold.json" 0.98)"); fi
    evaluate "$model" 1/3 0/0 1/2 --ckpt "$RUNS/$model.pt" --mode block "${threshold[@]}"
    # Full attention has no causal half that could check drafts.
    if [[ $model != *-full ]]; then evaluate "$model-speculative" 1/3 0/0 1/2 --ckpt "$RUNS/$model.pt" --mode speculative; fi
  done
  if [ -n "${STUDY:-}" ]; then
    evaluate undistilled 1/3 0/0 1/2 "${undistilled[@]}" \
      "rule=threshold,threshold=$(chosen "$RUNS/undistilled-threshold.json" 0.98)"
    if [ "$TASK" != pronounce ]; then # whose teacher is bidirectional
      evaluate undistilled-speculative 0/0 0/0 1/2 --ckpt "$RUNS/teacher.pt" --mode speculative
    fi
  fi
  evaluate ort-fp32 1/2 0/1 1/2 --bundle "$RUNS/student.bundle" --engine ort-fp32
  evaluate ort-int8 1/2 0/1 1/2 --bundle "$RUNS/student.bundle" --engine ort-int8
  count=(10000 2000 250)
  evaluate teacher 3/8 2/6 3/10 --ckpt "$RUNS/teacher.pt"

  # How long an answer takes: all models on the same problems by turns, so run it on an otherwise idle machine.
  if [ -n "${STUDY:-}" ]; then
    local bundles=("$RUNS/ort-int8.bundle")
    stage int8-bundle 1/1 0/0 1/1 blockstep export onnx --ckpt "$RUNS/cdlm.pt" --precision int8 --out "${bundles[0]}"
    for model in baseline teacher "${students[@]}"; do
      if [[ $model == *-control ]]; then continue; fi # as fast as its method
      stage "$model-bundle" 1/1 0/0 1/1 blockstep export onnx --ckpt "$RUNS/$model.pt" --out "$RUNS/$model.bundle"
      bundles+=("$RUNS/$model.bundle")
    done
    stage times 2/5 0/0 10/30 python -m samples.study.modes "${bundles[@]}" --task "$TASK" \
      --split "$(of test test test_families)" --count "$(n "$(of 500 0 100)" 2)" --out "$RUNS/times.jsonl"
  fi

  # What was made, by which versions, in which time; and the table.
  stage "${STUDY:+study-}table" 1/1 1/1 1/1 python samples/study/recipe_table.py "$RUNS"
}

distil() { # NAME, MINUTES, MINUTES, MINUTES, options of the method
  local name=$1 words=$2 forms=$3 others=$4
  shift 4
  stage "$name" "$words" "$forms" "$others" blockstep train distill "${student[@]}" "${updates[@]}" "$@" --out "$RUNS/$name.pt"
  students+=("$name")
}

evaluate() { # NAME, MINUTES, MINUTES, MINUTES, options that name the model
  local task split name=$1 words=$2 forms=$3 others=$4
  shift 4
  for task in $(tasks); do
    for split in $(splits); do
      if [[ $name:$split == @(*-control*|*-full|undistilled*):test_surface ]]; then continue; fi
      stage "$name$(mark "$task")-$split" "$words" "$forms" "$others" blockstep train evaluate "$@" --task "$task" \
        --split "$split" --count "$(n "$(of "${count[@]}")" 4)" --out "$RUNS/$name$(mark "$task")-$split.json"
    done
  done
}

# The threshold of mode `block` in a report of calibrate, or another value.
chosen() { # REPORT, OTHER
  local found
  found=$(sed -n 's/^ "block_threshold": \([0-9.]*\),$/\1/p' "$1" 2> /dev/null) || true
  echo "${found:-$2}"
}

tasks() { echo "${TASK/,/ }"; }

# What a task adds to the names of its reports if there are two.
mark() { [ "$1" = "$TASK" ] || echo "-$1"; }

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

case $TASK in
  pronounce | intents | math | code | math,code) ;;
  *) fail "TASK is '$TASK'; expected pronounce, intents, math, code or math,code" ;;
esac
case ${STUDY:+$TASK} in intents | math | code) fail "STUDY=1 is for TASK=pronounce or math,code, not $TASK; leave it out" ;; esac
command -v blockstep > /dev/null || fail "blockstep is not on PATH; run this with: make train"
[ -n "${SMOKE:-}" ] || command -v c++ > /dev/null || fail "there is no C++ compiler, which torch.compile needs; on Debian: apt install g++"
[ -n "${PLAN:-}" ] || mkdir -p "$RUNS"

planning=yes total=0
recipe
echo "$((total / 60)) h $((total % 60)) min to go, in $RUNS"
if [ -n "${PLAN:-}" ]; then exit; fi
planning=
trap keep_time EXIT
trap 'exit 130' INT TERM
recipe
