"""Streams an answer block by block, then shows one block being unmasked step by step: python samples/2_stream.py

`blockstep generate BUNDLE PROMPT --show` shows the unmasking in colors.
"""

from __future__ import annotations

from pathlib import Path

from runtime import load

SAMPLES = Path(__file__).resolve().parent


def main() -> None:
    model = load(SAMPLES / "student.bundle")
    prompt = (SAMPLES / "prompt_code.txt").read_text(encoding="utf-8").rstrip()
    for block in model.stream(prompt):  # final text only: it never changes later
        print(f"block {block.index}, {len(block.token_ids)} tokens: {block.text!r}")
    for step in model.steps(prompt, threshold=0.999):  # the higher the threshold, the fewer tokens per step
        places = zip(step.tokens.tolist(), step.open.tolist(), strict=True)  # both [block]
        shown = ["·" if hidden else model.tokenizer.decode([token]) for token, hidden in places]
        print(f"block {step.block}, {int(step.accepted.sum()):2} accepted: {'|'.join(shown)!r}")
        if step.block == 1:
            break  # leaving the loop cancels the answer


if __name__ == "__main__":
    main()
