"""Files made to do harm, each by name, through the doors that a user opens: refused in one line, or without effect."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product, zip_longest
from pathlib import Path

from corpus import GOLDEN, copied, manifest, model_file, rehash, text_file, write_manifest
from hostile_graphs import LOCATIONS, WAYS, endless, huge, not_numbers, outside
from hostile_texts import CUTS, LOOPS, PADDINGS, REACHES, template, tokenizer
from section import Section
from tally import tallied

from runtime import load_check
from runtime.bundle import trust_records
from runtime.bundle.manifest import read
from runtime.engines.trt import admission
from runtime.open_bundle import load

Attack = Callable[[Path], object]  # raises UserError, or returns and has done nothing
ALLOWED = ("subprocess.Popen", "os.posix_spawn", "ctypes.dlopen")  # the trial is a process of its own, torch is loaded
NAMES = (
    "../a", "../../etc/passwd", "/etc/passwd", "a/b", "a/../../b", "..", ".", "", ".hidden", "a\\b", "..\\a", "C:\\a",
    "C:a", "//host/a", "file:///etc/passwd", "~/a", "a\x00", "a\n", "a b", "\u2024\u2024/a", "a\u2215b", "%2e%2e/a",
    "manifest.json", "-rf", "\x1b[2J", "a" * 300, "é", "CON:", "a/", "./a",
)  # fmt: skip
PARTS = ("model", "tokenizer", "chat_template")
STANDING = ("nothing", "device", "pipe", "folder", "itself")  # in a file's place
SIZES = (("manifest", 1 << 40), ("manifest", 17 << 20), ("tokenizer", 101 << 20), ("chat_template", 2 << 20))
KEYS = (
    ("ort.bundle/manifest.json", "format"), ("ort.bundle/manifest.json", "block"),
    ("ort.bundle/manifest.json", "sha256"), ("directory/config.json", "vocab_size"),
    ("directory/blockstep.json", "block"), ("directory/tokenizer_config.json", "eos_token"),
)  # fmt: skip
HARMLESS = ("templates that reach for attributes", "tokenizers that pad or cut")


@cache
def attacks() -> dict[str, list[Attack]]:
    """All of them by their kind."""
    return {
        "names that lead out of the bundle": [named(*each) for each in product(NAMES, PARTS)],
        "links, pipes and folders in a file's place": [placed(*e) for e in product(("manifest", *PARTS), STANDING)],
        "weights outside the bundle": [outside(location) for location in LOCATIONS],
        "graphs that swell or loop": [endless(), *(huge(way) for way in WAYS)],
        "weights that are no numbers": [
            not_numbers(*each) for each in product((float("nan"), float("inf")), range(12))
        ],
        "templates that do not end": [template(text) for text in LOOPS],
        "templates that reach for attributes": [template(text) for text in REACHES],
        "tokenizers that pad or cut": [
            *(tokenizer("padding", each) for each in PADDINGS), *(tokenizer("truncation", each) for each in CUTS),
        ],
        "files of absurd size": [packed, *(swollen(*each) for each in SIZES)],
        "keys that stand twice": [doubled(*each) for each in KEYS],
        "TensorRT engines off by one bit": [flipped(bit) for bit in range(8 * 18)],
        "TensorRT engines of other machines": [foreign_engine],
    }  # fmt: skip


@cache
def order() -> tuple[tuple[str, Attack], ...]:
    """One of each kind by turns, so that a small run meets all kinds."""

    def turns() -> Iterator[tuple[str, Attack]]:
        for row in zip_longest(*attacks().values()):
            yield from ((kind, attack) for kind, attack in zip(attacks(), row, strict=True) if attack is not None)

    return tuple(turns())


def run(scale: float) -> Section:
    return tallied("Attacks", "attacks", max(1, int(len(order()) * min(1, scale))))


def kind(number: int) -> str:
    return order()[number][0]


def attempt(number: int, folder: Path) -> str:
    what, attack = order()[number]
    load_check.SECONDS = 1
    attack(folder)
    assert what in HARMLESS, "it was taken"
    return "without effect"


def named(name: str, part: str) -> Attack:
    """A file's name that leads elsewhere."""

    def attack(folder: Path) -> None:
        bundle = copied("ort.bundle", folder)
        values = manifest(bundle)
        engine = values["engines"][0]
        if part == "model":
            engine.update(model=name, files={name: next(iter(engine["files"].values()))})
        else:
            values[part]["file"] = name
        write_manifest(bundle, values)
        load(bundle)

    return attack


def placed(name: str, what: str) -> Attack:
    """Something else than a plain file in a file's place."""

    def attack(folder: Path) -> None:
        bundle = copied("ort.bundle", folder)
        file = {"manifest": bundle / "manifest.json", "model": model_file(bundle)}.get(name) or text_file(bundle, name)
        file.unlink()
        if what == "pipe":
            os.mkfifo(file)
        elif what == "folder":
            file.mkdir()
        else:
            file.symlink_to({"nothing": folder / "nowhere", "device": "/dev/zero", "itself": file}[what])
        load(bundle)

    return attack


def swollen(name: str, size: int) -> Attack:
    """A file of many more bytes than its kind has; they are all zero and take no disk."""

    def attack(folder: Path) -> None:
        bundle = copied("ort.bundle", folder)
        os.truncate(bundle / "manifest.json" if name == "manifest" else text_file(bundle, name), size)
        if name != "manifest":
            rehash(bundle)
        load(bundle)

    return attack


def packed(folder: Path) -> None:
    """A student.pt of two megabytes that unpacks to two gigabytes."""
    from train.open_checkpoint import load as load_checkpoint

    file = folder / "student.pt"
    with zipfile.ZipFile(GOLDEN / "student.pt") as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            with new.open(part.filename, "w", force_zip64=True) as stream:
                stream.write(old.read(part))
                for _ in range(2048 if part.filename.endswith("data/0") else 0):
                    stream.write(bytes(1 << 20))
    load_checkpoint(file)


def doubled(file: str, key: str) -> Attack:
    """A key that stands twice, so that two readers may read two things."""

    def attack(folder: Path) -> None:
        from train.open_checkpoint import load as load_checkpoint

        path = copied(Path(file).parts[0], folder) / Path(file).name
        text = path.read_text()
        place = text.index(f'"{key}"')
        path.write_text(f'{text[:place]}"{key}": 0, {text[place:]}')
        load(path.parent) if "manifest" in file else load_checkpoint(path.parent)

    return attack


def flipped(bit: int) -> Attack:
    """A TensorRT engine off by one bit, by a user who trusts it."""

    def attack(folder: Path) -> None:
        made = read(copied("trt.bundle", folder))
        engine = made.engines[0]
        trust_records.remember_built(engine.files[engine.model])
        content = bytearray((made.path / engine.model).read_bytes())
        assert admission.read_content(made.path, engine, trust=False) == bytes(content)
        content[bit // 8] ^= 1 << bit % 8
        (made.path / engine.model).write_bytes(content)
        admission.read_content(made.path, engine, trust=True)

    return attack


def foreign_engine(folder: Path) -> None:
    """A TensorRT engine with its hash right that this machine has not built."""
    bundle = copied("trt.bundle", folder)
    (bundle / read(bundle).engines[0].model).write_bytes(b"native code")
    rehash(bundle)
    made = read(bundle)
    admission.read_content(made.path, made.engines[0], trust=False)
