"""Replays references where nothing is wrong: honest_loads.py CPU DIR [PART], started by other_cpus.sh --matrix.

DIR holds the bundles of honest_bundles.py. Every engine of each is opened with 1 and 2 threads and judged as a first
load does, but in this process; with PART --whole, and without --first-loads quantized ones with one thread, by the
whole reference too. If int8 products saturate, a first load with the probe switched off has to be refused. Each load is
a line of DIR/loads.jsonl, of which `honest_loads.py summary DIR` prints what was farthest off. Needs runtime/ alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from emulated import CPUS, PATIENCE

from runtime import load, load_check
from runtime.backend import Inspectable
from runtime.bundle.manifest import Bundle, Engine, RecordedReference
from runtime.bundle.reference import ANSWERS, LARGEST, read_reference
from runtime.bundle.store import read
from runtime.engines.ort.saturation import u8s8_saturates
from runtime.engines.registry import OpenOptions
from runtime.errors import UserError
from runtime.perf.conditions import find_version
from runtime.proof.first_load import read_cpu_features
from runtime.proof.judge import judge_answers, judge_figures, judge_tokens, measure
from runtime.proof.replay import replay

THREADS = (1, 2)
WHOLE, FIRST_LOADS = "--whole", "--first-loads"  # what is replayed of each reference; default: see above
LOADS = "loads.jsonl"
REFUSED = ("does not compute on this machine what PyTorch computed", "use --engine ort-fp32, which passes here")
PROBE = "from blockstep.load_check import report\n"
NO_PROBE = "from blockstep.engines.ort import saturation\nsaturation.u8s8_saturates = lambda: False\n"


def replay_reference(bundle: Bundle, engine: Engine, threads: int, whole: bool) -> dict[str, Any]:
    """Opens an engine, replays its reference and returns each figure, its bound, and whether all bounds are kept."""
    recorded = cast(RecordedReference, engine.reference)
    reference = read_reference(bundle.path, recorded, bundle.contract)
    _, backend = engine.kind.open(bundle, [engine], OpenOptions(threads=threads))
    started = time.process_time()
    passes, bounds = reference.forwards, recorded.bounds
    if not whole:
        passes, bounds = passes[: recorded.first_load], recorded.first_load_bounds
    found = replay(cast(Inspectable, backend), passes)
    checks = judge_figures(passes, found, bounds)
    checks.append(judge_tokens(passes, found, 2 * bounds[LARGEST]))
    if whole and ANSWERS in bounds:
        checks += judge_answers(backend, reference.answers, bundle.contract.gate, bounds)
    figures = {name: figure.value for name, figure in measure(passes, found).items()}
    wrong = [check.detail for check in checks if not check.ok]
    seconds = time.process_time() - started
    return {"passes": len(passes), "figures": figures, "bounds": bounds, "wrong": wrong, "cpu_seconds": seconds}


def loads(cpu: str, folder: Path, part: str) -> Iterator[dict[str, Any]]:
    """Yields a record per bundle, count of threads, engine and part of the reference."""
    versions = {name: find_version(name) for name in ("onnxruntime", "numpy")}
    for path in sorted(folder.glob("*.bundle")):
        bundle = read(path)
        for threads in THREADS:
            for engine in bundle.engines:
                some = part != FIRST_LOADS and threads == 1 and engine.precision.startswith("int")
                for whole in choose_parts(bundle, engine, part == WHOLE or some):
                    where = {"cpu": cpu, **versions, "model": path.stem, "precision": engine.precision}
                    yield {
                        **where,
                        "threads": threads,
                        "whole": whole,
                        **replay_reference(bundle, engine, threads, whole),
                    }


def choose_parts(bundle: Bundle, engine: Engine, whole: bool) -> tuple[bool, ...]:
    """Returns whether to replay the first load's part (False), the whole reference (True), or both if they differ."""
    recorded = cast(RecordedReference, engine.reference)
    if recorded.first_load == len(read_reference(bundle.path, recorded, bundle.contract).forwards):
        return (whole,)
    return (False, True) if whole else (False,)


def find_worst_share(record: dict[str, Any]) -> tuple[float, str]:
    """Returns the largest figure as a share of its bound, and its name."""
    return max((value / record["bounds"][name], name) for name, value in record["figures"].items())


def format_record(record: dict[str, Any]) -> str:
    """Describes a record in one line."""
    share, name = find_worst_share(record)
    what = f"{record['model']} {record['precision']}, {record['threads']} threads, {record['passes']} forward passes"
    worst = f"{name} {record['figures'][name]:.1e} of {record['bounds'][name]:.1e} ({share:.0%})"
    end = f"; refused: {'; '.join(record['wrong'])}" if record["wrong"] else ""
    versions = f"onnxruntime {record['onnxruntime']}, numpy {record['numpy']}"
    return f"{record['cpu']}, {versions}: {what}: {worst}, {record['cpu_seconds']:.0f} CPU s{end}"


def refusals(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Yields, per engine with int8 products, whether its first load is refused if products saturate, and the words."""
    program = load_check.CHILD
    load_check.CHILD = program.replace(PROBE, NO_PROBE + PROBE)
    try:
        for path in sorted(folder.glob("*.bundle")):
            for name in ("ort-int8", "ort-int4"):
                try:
                    load(path, engine=name, threads=1, verify="always")
                except UserError as error:
                    right = all(words in str(error) for words in REFUSED)
                    yield f"{path.stem} {name}", right, str(error)
                else:
                    yield f"{path.stem} {name}", False, "was loaded"
    finally:
        load_check.CHILD = program


def main(cpu: str, folder: Path, part: str) -> int:
    """Prints a line per load and returns the exit code: 1 if an honest load is refused or a saturating one is not."""
    load_check.SECONDS = PATIENCE
    expected, features, failed = CPUS.get(cpu), read_cpu_features(), 0  # nothing is known of this machine's own
    if expected and (expected.has not in features or expected.lacks in features):
        print(f"[x] {cpu}: {expected.has} and no {expected.lacks} expected, found {' '.join(features)}")
        return 1
    with open(folder / LOADS, "a", buffering=1, encoding="utf-8") as file:
        for record in loads(cpu, folder, part):
            print(f"[{'x' if record['wrong'] else 'ok'}] {format_record(record)}", flush=True)
            file.write(json.dumps(record) + "\n")
            failed += bool(record["wrong"])
    if u8s8_saturates():
        for name, right, words in refusals(folder):
            print(f"[{'ok' if right else 'x'}] {cpu}: {name} with saturating products: {words}", flush=True)
            failed += not right
    return int(failed > 0)


def summarize(folder: Path) -> int:
    """Prints, per precision and model, each figure's largest value over all loads; returns 1 if one was refused."""
    lines = (folder / LOADS).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for key in sorted({(each["precision"], each["model"], each["whole"]) for each in records}):
        chosen = [each for each in records if (each["precision"], each["model"], each["whole"]) == key]
        part = "whole reference" if key[2] else "first load"
        print(f"{key[0]} {key[1]}, {part}, {len(chosen)} loads:")
        for name, bound in chosen[0]["bounds"].items():
            if name in chosen[0]["figures"]:
                far = max(chosen, key=lambda each: each["figures"][name])
                values = sorted(each["figures"][name] for each in chosen)
                place = f"{far['cpu']}, onnxruntime {far['onnxruntime']}"
                print(f"  {name}: {values[0]:.1e} to {values[-1]:.1e} ({place}), bound {bound:.1e}")
    refused = [each for each in records if each["wrong"]]
    print(f"{len(records)} loads, {len(refused)} refused")
    return int(bool(refused))


def run(words: Sequence[str]) -> int:
    if words[0] == "summary":
        return summarize(Path(words[1]))
    return main(words[0], Path(words[1]), words[2] if len(words) > 2 else "")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
