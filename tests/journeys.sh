#!/usr/bin/env bash
# The five journeys of a new user, typed from the pages: journeys.sh CLONE [NUMBERS]
#
#   1  try it                    2  a Hugging Face directory to a Jetson's graph     3  a student on own data, tiny
#   4  a C program               5  a change with its test
#
# CLONE: a fresh clone in which `make test` made .venv (journeys 2 to 5). NUMBERS: which ones (default: 1 2 3 4 5).
# Stops at the first failing command; prints `JOURNEY n SECONDS` (wall clock) after each, and its CPU seconds on stderr.
set -euo pipefail
cd "$1"
shift
[ $# -gt 0 ] || set -- 1 2 3 4 5
port=${PORT:-8011}

say() { echo "-- $*" >&2; }
has() { grep -qF -- "$1" "$2" || { echo "expected '$1' in $2:" >&2; cat "$2" >&2; exit 1; }; }
activate() { # ENVIRONMENT, as `. ENVIRONMENT/bin/activate`, which here stays in one journey: each is a subshell
  export PATH="$PWD/$1/bin:$PATH" VIRTUAL_ENV="$PWD/$1"
}

journey1() { # README: Install, Try; docs/serve.md: curl
  make try > out1.txt 2>&1
  has '#### 7' out1.txt
  activate .try
  blockstep generate samples/student.bundle "Jane packs 14 eggs in boxes of 2 and sells each box for 6 dollars. Then she spends 11 dollars on soup. How many dollars are left?" --show
  blockstep generate samples/pronounce.bundle "xylophone"
  python samples/8_decide.py "wake me up at seven, no, at eight"
  pip install --quiet '.[serve]'
  blockstep serve samples/student.bundle --port "$port" > serve.txt 2>&1 &
  server=$!
  trap 'kill $server 2> /dev/null || true' EXIT
  for _ in $(seq 300); do curl -sf "http://127.0.0.1:$port/readyz" > /dev/null && break; kill -0 $server; sleep 1; done
  curl -sf "http://127.0.0.1:$port/" > page.html
  has '<title>blockstep</title>' page.html
  curl -sf "http://127.0.0.1:$port/v1/completions" -H 'content-type: application/json' \
    -d '{"threshold": 0.98, "prompt": "Ana has 20 buttons. She gives half of the buttons to Eva. Later she finds 2 more buttons in a box. How many buttons does Ana have in the end?"}' > answer.json
  has '#### 12' answer.json
}

journey2() { # docs/jetson.md, step 1, with a tiny random SDAR directory in the published one's place
  activate .venv
  PYTHONPATH=tests/support python -c 'import foreign as f; f.write(f.Path("tiny"), "sdar")'
  blockstep export trt --ckpt tiny --block 4 --out sdar.bundle --graph-only --dialect plain --capacity 64
  blockstep export fit sdar.bundle --device orin-nano
  blockstep generate sdar.bundle "Hello" --engine plain-fp16-64
  blockstep verify sdar.bundle --engine plain-fp16-64
  blockstep export trt --ckpt samples/student.pt --out student.bundle --graph-only --dialect plain
  blockstep export fit student.bundle --device orin-nano
  blockstep generate student.bundle "$(cat samples/prompt_math.txt)" --engine plain-fp16-512 > out2.txt
  has '#### 7' out2.txt
  blockstep verify student.bundle --engine plain-fp16-512
}

journey3() { # docs/distil.md, On your own data, with its tiny numbers
  activate .venv
  python - << 'EOF'
import json
with open("own.jsonl", "w") as f:
    for a in range(2, 17):
        for b in range(2, 16):
            line = {"prompt": f"A shelf has {a} rows of {b} books. How many books?", "answer": f"{a}*{b}={a * b}.\n#### {a * b}"}
            f.write(json.dumps(line) + "\n")
EOF
  blockstep train teacher --objective causal --data own.jsonl --optimizer muon --learning-rate 5e-3 --steps 4 --batch 32 --out runs/baseline.pt
  blockstep train teacher --objective masked --attention causal_context --data own.jsonl --init runs/baseline.pt \
    --optimizer muon --learning-rate 3e-3 --steps 4 --batch 24 --out runs/teacher.pt
  blockstep train evaluate --ckpt runs/teacher.pt --data own.jsonl --out runs/teacher.json
  blockstep train collect --ckpt runs/teacher.pt --data own.jsonl --count 8 --out runs/trajectories
  blockstep train distill --method cdlm --attention causal_context --teacher runs/teacher.pt --trajectories runs/trajectories \
    --data own.jsonl --optimizer muon --learning-rate 1e-3 --steps 4 --weights 0.3,0.15,1 --next-token 1 --no-only-right --out runs/student.pt
  # The page: it refuses the report of a teacher that has nothing right.
  blockstep train calibrate --ckpt runs/student.pt --data own.jsonl --teacher-report runs/teacher.json 2> calibrate.txt && exit 1
  has 'right; expected some' calibrate.txt
  blockstep train evaluate --ckpt runs/student.pt --data own.jsonl --split test
  blockstep export onnx --ckpt runs/student.pt
  blockstep export verify runs/student.bundle --ckpt runs/student.pt --data own.jsonl
  blockstep generate runs/student.bundle "A shelf has 3 rows of 4 books. How many books?" --show
}

journey4() { # docs/embed.md, C: the page's own lines
  activate .venv
  blockstep capi --out build/c
  awk '/^cat > build\/hello.c/ {on = 1} on {print} on && /^EOF$/ {exit}' docs/embed.md > hello.sh
  sh hello.sh
  cc -std=c11 -Wall build/hello.c -o build/hello -Ibuild/c -Lbuild/c -lblockstep -Wl,-rpath,"$PWD/build/c"
  build/hello samples/student.bundle "$(cat samples/prompt_math.txt)" > out4.txt
  has '86 tokens in 9 forward passes' out4.txt
}

journey5() { # CONTRIBUTING.md: a gate rule and its test, on a branch that is thrown away; `make test` as a whole is left out
  activate .venv
  git switch -q -c my-change
  python - << 'EOF'
def put(path, *pairs):
    text = open(path).read()
    for old, new in pairs:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    open(path, "w").write(text)

put("tests/test_decoding_gate.py",
    ('        (replace(AT_LEAST, min=2), [0.1, 0.3, 0.2], "", ".xx"),\n',
     '        (replace(AT_LEAST, rule="prefix"), [0.9, 0.5, 0.4, 0.9], "", "xx.."),\n'
     '        (replace(AT_LEAST, min=2), [0.1, 0.3, 0.2], "", ".xx"),\n'),
    ('    elif spec.rule == "threshold":\n', '    elif spec.rule in ("threshold", "prefix"):\n'),
    ('        passed = [i for i in free if compared[i]]\n',
     '        passed = [i for i in free if compared[i]]\n'
     '        if spec.rule == "prefix":\n'
     '            passed = [i for i in passed if all(j in passed for j in free if j < i)]\n'))
EOF
  pytest -q -x tests/test_decoding_gate.py > before.txt 2>&1 && exit 1
  has "prefix" before.txt
  python - << 'EOF'
def put(path, *pairs):
    text = open(path).read()
    for old, new in pairs:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    open(path, "w").write(text)

put("runtime/decoding/gate.py",
    ("@dataclass(frozen=True, slots=True)\nclass Rule:", '''def select_prefix(spec: GateSpec, metric: Floats, free: Bools, ranked: Ranked, threshold: Floats) -> Bools:
    """Returns the positions that pass the comparison before the first free one that does not. [batch, block]"""
    passed = select_by_threshold(spec, metric, free, ranked, threshold)
    leading: Bools = np.logical_and.accumulate(passed | ~free, axis=1) & free
    return leading


@dataclass(frozen=True, slots=True)
class Rule:'''),
    ('    "factor": Rule(sel', '    "prefix": Rule(select_prefix, {"confidence": PROBABILITY, "entropy": NATS}, compares=True),\n    "factor": Rule(sel'))
put("docs/bundle-format.md", ("`rule` threshold, factor", "`rule` threshold, prefix, factor"))
put("CHANGELOG.md", ("# Changelog\n\n## Unreleased\n\n### Added\n\n", "# Changelog\n\n## Unreleased\n\n### Added\n\n* The gate rule `prefix`.\n"))
EOF
  pytest -q -x tests/test_decoding_gate.py
  ruff format .
  ruff check .
  mypy
  blockstep train evaluate --ckpt samples/student.pt --task math --count 2 --gate rule=prefix
  git checkout -q -- .
  git switch -q -
  git branch -q -D my-change
}

TIMEFORMAT="CPU %U + %S s (user + system)"
for number; do
  say "journey $number"
  start=$SECONDS
  time (set -euo pipefail; "journey$number")
  echo "JOURNEY $number $((SECONDS - start))"
done
