"""Fills a form from a sentence, with a probability per field: python samples/8_decide.py "A sentence." [BUNDLE]

Needs: pip install '.[cpu]'. BUNDLE: samples/intents.bundle, or one that `make train TASK=intents` made. The form is the
JSON schema samples/intents.schema.json: what to do, and nine slots, which are null if the sentence has none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runtime import UserError, load
from runtime.cli import run

SAMPLES = Path(__file__).resolve().parent
BUNDLE, SCHEMA = SAMPLES / "intents.bundle", SAMPLES / "intents.schema.json"


def main(sentence: str = "", bundle: str | Path = BUNDLE) -> int:
    if not sentence.strip():
        raise UserError("the sentence is empty; give one, in quotes, such as 'wake me up at seven, no, at eight'")
    if not Path(bundle).exists():
        raise UserError(f"{bundle} does not exist; make train TASK=intents writes runs/intents/student.bundle")
    decision = load(bundle).decide(sentence, json.loads(SCHEMA.read_text(encoding="utf-8")))
    for field in decision.fields:
        print(f"{'.'.join(map(str, field.path)):8} {json.dumps(field.value):20} {field.confidence:.3f}")
    print(f"{decision.forwards} forward pass{'es' * (decision.forwards > 1)}: {decision.text}")
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: main(*sys.argv[1:3])))
