"""Damage that learns: atheris keeps what reaches new branches of the readers written in Python, and changes it further.

python tests/reliability/guided.py READER [libFuzzer's options] tries one reader; needs atheris, else it is left out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cells import HERE
from corpus import GOLDEN, copied
from section import Section
from tqdm import tqdm

FULL = 20_000
READERS = ("manifest", "template", "config", "decoding")
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-seed=1", "-verbosity=0")


def run(scale: float) -> Section:
    """Each reader's share of the inputs; what fails is kept beside the report and named in its row."""
    if importlib.util.find_spec("atheris") is None:
        return Section("Guided by coverage", (("atheris is not installed", 0, "nothing tried"),))
    count = max(1, int(FULL * scale))
    return Section(
        "Guided by coverage", tuple((name, count, guided(name, count)) for name in tqdm(READERS, disable=None))
    )


def guided(name: str, count: int) -> str:
    """What came of that many inputs."""
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(seeds(name)):
            Path(folder, f"seed{i}").write_bytes(seed)
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE)])
        line = [sys.executable, str(HERE / "guided.py"), name, f"-runs={count}", *LIMITS, folder]
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", cwd=folder, env={**os.environ, "PYTHONPATH": path},
            check=False,
        )  # fmt: skip
    found = re.search(r"new_units_added: *(\d+)", done.stderr)
    if done.returncode or found is None:
        return f"WRONG: ended with {done.returncode}, {done.stderr[-600:]!r}"
    return f"all read or refused in one line; {found[1]} reached new branches"


def seeds(name: str) -> list[bytes]:
    """The golden files that a reader reads."""
    found = {
        "manifest": sorted(GOLDEN.glob("*.bundle/manifest.json")),
        "template": [GOLDEN / "directory/chat_template.jinja"],
        "config": [GOLDEN / "directory/config.json"], "decoding": [GOLDEN / "directory/blockstep.json"],
    }[name]  # fmt: skip
    return [file.read_bytes() for file in found]


def reader(name: str, folder: Path) -> Callable[[bytes], object]:
    """Reads bytes as that kind of file."""
    if name == "template":
        from runtime.text.chat_template import render

        return lambda content: render(content.decode("utf-8", "replace"), [{"role": "user", "content": "x"}])
    if name == "manifest":
        from runtime.bundle.manifest import read

        bundle = copied("ort.bundle", folder)
        return lambda content: ((bundle / "manifest.json").write_bytes(content), read(bundle))
    from train.huggingface.families import Overrides
    from train.huggingface.reader import derive_decoding, make_model_config, read_settings, read_student_file
    from train.huggingface.tokenizer_files import read_text

    directory = copied("directory", folder)
    file, text = directory / {"config": "config.json", "decoding": "blockstep.json"}[name], read_text(directory)

    def read_config(content: bytes) -> None:
        file.write_bytes(content)
        settings = read_settings(directory, Overrides(family="qwen3") if name == "config" else Overrides())
        shape = make_model_config(settings)
        read_student_file(directory, Overrides()) or derive_decoding(settings, text, Overrides(block=4), shape)

    return read_config


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["runtime", "train"]):
        import train.huggingface.reader  # noqa: F401 - read by `reader`, instrumented here
    from runtime.errors import UserError

    folder = Path(tempfile.mkdtemp())
    read = reader(sys.argv[1], folder)

    def attempt(content: bytes) -> None:
        try:
            read(content)
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable()

    atheris.Setup([sys.argv[0], *sys.argv[2:]], attempt)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
