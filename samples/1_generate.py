"""Answers a prompt with the sample student: python samples/1_generate.py (needs: pip install '.[cpu]')"""

from __future__ import annotations

from pathlib import Path

from runtime import load

SAMPLES = Path(__file__).resolve().parent


def main() -> None:
    model = load(SAMPLES / "student.bundle")
    prompt = (SAMPLES / "prompt_math.txt").read_text(encoding="utf-8").rstrip()
    answer = model.generate(prompt)
    print(answer.text)
    result = answer.result
    print(
        f"-- {len(result.token_ids)} tokens in {result.forwards} forward passes, "
        f"{result.seconds:.3f} s, {result.finish}"
    )
    ids = model.tokenizer.encode(prompt)  # int64 [length]; token ids may be given instead of a text
    assert model.generate(ids).result.token_ids == result.token_ids
    for mode in model.contract.modes:  # speculative: the causal answer in fewer forward passes
        print(f"-- mode {mode}: {model.generate(prompt, mode=mode).result.forwards} forward passes")
    for threshold in (0.99, 0.5):  # of the mode block; a higher one takes more forward passes and makes fewer mistakes
        other = model.generate(prompt, threshold=threshold)
        print(f"-- threshold {threshold}: {other.result.forwards} forward passes: {other.text!r}")


if __name__ == "__main__":
    main()
