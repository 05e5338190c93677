"""Prints the phonemes of a sentence, word by word: python samples/7_pronounce.py "Any sentence you like." [BUNDLE]

Needs: pip install '.[cpu]'. BUNDLE: samples/pronounce.bundle, or one that `make train` made.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

from runtime import UserError, load
from runtime.cli import run
from runtime.decoding.loop import generate_batch

BUNDLE = Path(__file__).resolve().parent / "pronounce.bundle"
WORD = re.compile(r"[a-z']*[a-z][a-z']*", re.IGNORECASE)


def main(sentence: str = "", bundle: str | Path = BUNDLE) -> int:
    letters = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", sentence.replace("’", "'")))  # no accents
    if not (words := WORD.findall(letters)):
        raise UserError(f"{sentence!r} has no word; give a sentence of English words, in quotes")
    if not Path(bundle).exists():
        raise UserError(f"{bundle} does not exist; make train writes one, runs/pronounce/student.bundle")
    model = load(bundle)
    # A prompt is one word; an engine that takes several sequences decodes all of them in one batch.
    requests = [model.request(word) for word in words]
    results = generate_batch(model.backend, requests, gate=model.gate, slots=min(len(words), model.contract.batch))
    spoken = []
    for word, result in zip(words, results, strict=True):
        spoken.append(model.tokenizer.decode([each for each in result.token_ids if each not in model.contract.eos_ids]))
        print(f"{word:16} {spoken[-1]}")
    print(" | ".join(spoken))
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: main(*sys.argv[1:3])))
