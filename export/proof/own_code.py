"""Runs a Hugging Face directory's own modelling code over recorded inputs: a separate program that imports nothing of
blockstep, so that any Python with torch, transformers and numpy runs it.

Usage: own_code.py DIRECTORY FOLDER TRUST. FOLDER holds `NNN.npz` with ids and visible [length] and rows [n]. There the
program writes `NNN.own.npy`, fp32 [n, vocab], and `own.json`: how the code was run, or why not (`refused`).
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STILL = 1e-4  # of the largest logit; a row's logits may change by so much if a token changes that it does not see
MOVED = 1e-6  # a row's logits have to change by more than this if a token changes that it sees
DTYPE = (4, 56)  # the first version of transformers in which `torch_dtype` is called `dtype`


def main(directory: str, folder: Path, trust: bool) -> None:
    """Writes the files that the module's docstring lists."""
    try:
        found = run(directory, folder, trust)
    except Exception as error:  # a stranger's code may raise anything
        found = {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    (folder / "own.json").write_text(json.dumps(found))


def run(directory: str, folder: Path, trust: bool) -> dict[str, Any]:
    """Loads the model, finds out how it takes the attention mask, and runs every input."""
    import torch

    transformers = import_module("transformers")  # no import statement, so that mypy does not check it
    known = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    config = json.loads((Path(directory) / "config.json").read_text())
    kind, code = str(config.get("model_type")), config.get("auto_map") or {}
    if kind not in known and not trust:
        return {**versions, "untrusted": kind}
    if kind not in known and not code:
        return {**versions, "refused": f"there is no code in it (auto_map), and transformers knows no {kind}"}
    started = time.perf_counter()
    model = load(directory, code, trust)
    inputs = sorted(folder.glob("[0-9]*.npz"))
    form, tried = choose_form(model, [dict(np.load(file)) for file in inputs])
    named = {
        **versions,
        "class": type(model).__name__,
        "own": type(model).__module__.startswith("transformers_modules"),
    }
    if form is None:
        return {**named, "refused": f"it masks in no way that was tried: {'; '.join(tried)}"}
    for file in inputs:
        arrays = np.load(file)
        logits = forward(model, form, arrays["ids"], arrays["visible"])
        np.save(file.with_suffix(".own.npy"), logits[arrays["rows"]])
    return {**named, "form": form, "seconds": round(time.perf_counter() - started, 1)}


def load(directory: str, code: dict[str, Any], trust: bool) -> Any:
    """Returns the model in fp32. Raises ValueError if the directory lacks one of its weights."""
    import torch

    transformers = import_module("transformers")
    name = "AutoModel" if trust and code and "AutoModelForCausalLM" not in code else "AutoModelForCausalLM"
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    dtype = {"dtype" if version >= DTYPE else "torch_dtype": torch.float32}
    model, info = getattr(transformers, name).from_pretrained(
        directory, trust_remote_code=trust, local_files_only=True, output_loading_info=True, **dtype
    )
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"its code wants weights that the directory lacks, such as {lacking[0]}")
    return model.eval()


def make_masks(visible: Any) -> dict[str, dict[str, Any]]:
    """Returns arguments that show query i the first visible[i] positions, by the form in which code takes them."""
    import torch

    seen = torch.arange(len(visible))[None, :] < torch.from_numpy(visible)[:, None]  # [length, length]
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    return {
        "by its own rule": {},
        "by a float attention_mask [1, 1, length, length]": {"attention_mask": added},
        "by a bool attention_mask [1, 1, length, length]": {"attention_mask": seen[None, None]},
        "by a bool attention_mask [1, length, length]": {"attention_mask": seen[None]},
        "by a float attention_bias [1, 1, length, length]": {"attention_bias": added},
    }


def forward(model: Any, form: str, ids: Any, visible: Any) -> Any:
    """Returns the logits of one forward pass, fp32 [length, vocab]. Raises ValueError if they have another shape."""
    import torch

    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids)[None], use_cache=False, **make_masks(visible)[form])
    logits = out.logits if hasattr(out, "logits") else out[0]
    if tuple(logits.shape[:2]) != (1, len(ids)):
        raise ValueError(f"its logits are {list(logits.shape)}")
    return logits[0].float().numpy()


def choose_form(model: Any, inputs: list[dict[str, Any]]) -> tuple[str | None, list[str]]:
    """Returns the first form in which each row sees what it should, and why each form before it was rejected.

    Forms are tried on the input with the most distinct attention prefix lengths; of several, on the shortest.
    """
    probe = max(inputs, key=lambda each: (len(set(each["visible"].tolist())), -len(each["ids"])))
    left: list[str] = []
    for form in make_masks(probe["visible"]):
        try:
            wrong = find_misread(model, form, probe)
        except Exception as error:  # the code does not take this form
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        if not wrong:
            return form, left
        left.append(f"{form}: {wrong}")
    return None, left


def find_misread(model: Any, form: str, probe: dict[str, Any]) -> str:
    """Returns which row sees a token that it should not, or does not see one that it should; "" if none."""
    ids, visible = probe["ids"], probe["visible"]
    before = forward(model, form, ids, visible)
    for place in sorted({len(ids) - 1, len(ids) // 2, min(1, len(ids) - 1)}, reverse=True):
        changed = ids.copy()
        changed[place] = ids[0] if ids[0] != ids[place] else (ids[place] + 1) % before.shape[-1]
        moved = np.abs(forward(model, form, changed, visible) - before).max(axis=-1)  # [length]
        for row, sees in enumerate(visible > place):
            if not (moved[row] > MOVED if sees else moved[row] <= STILL * np.abs(before).max()):
                return f"row {row} {'does not see' if sees else 'sees'} position {place} of {len(ids)}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1")
