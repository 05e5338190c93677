"""Makes page.webp, a recording of the page that `blockstep serve` has at /: python docs/pictures/page.py [OUT]

Needs playwright, Pillow and a Chromium on PATH. The sample bundle is served on this machine, its prompt is typed, and
the replay of the answer gives one frame per forward pass.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "samples"
SIZE: ViewportSize = {"width": 760, "height": 630}
FRAME_MS, HOLD_MS = 250, 2500  # per forward pass, as the page's own replay; of the last frame


def record(page: Page, url: str) -> list[bytes]:
    """Returns the page as PNG, after each forward pass of the answer."""
    page.goto(url)
    page.wait_for_function("document.getElementById('model').textContent")
    page.fill("#prompt", (SAMPLES / "prompt_math.txt").read_text(encoding="utf-8"))
    page.click("#go")
    page.wait_for_selector("#answer[data-done=true]")
    frames = list[bytes]()
    for i in range(page.evaluate("frames.length")):
        page.evaluate("i => draw(frames[i])", i)
        frames.append(page.screenshot())
    return frames


def main() -> int:
    """Writes the recording to OUT, by default next to this script."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "page.webp"
    words = [sys.executable, "-m", "runtime.serve", str(SAMPLES / "student.bundle"), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None:
                raise AssertionError("the server has no output")
            url = json.loads(server.stdout.readline())["url"]
            with sync_playwright() as tools:
                browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                frames = record(browser.new_page(viewport=SIZE), url)
                browser.close()
        finally:
            server.terminate()
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    durations = [FRAME_MS] * (len(images) - 1) + [HOLD_MS]
    images[0].save(out, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=70, method=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
