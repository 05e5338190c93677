"""Serves the sample student and calls it with OpenAI's client: python samples/4_serve.py

Needs: pip install '.[cpu,serve]' openai
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openai import OpenAI

SAMPLES = Path(__file__).resolve().parent
SERVE = [sys.executable, "-m", "runtime.serve", str(SAMPLES / "student.bundle"), "--port", "0", "--json"]


def main() -> None:
    prompt = (SAMPLES / "prompt_math.txt").read_text(encoding="utf-8").rstrip()
    with subprocess.Popen(SERVE, cwd=SAMPLES.parent, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())  # the server picks a free port and reports it
        with OpenAI(base_url=f"{told['url']}/v1", api_key="none") as client:
            whole = client.chat.completions.create(model=told["model"], messages=[{"role": "user", "content": prompt}])
            print(whole.choices[0].message.content)
            own = (whole.model_extra or {})["blockstep"]
            print(f"-- {own['tokens']} tokens in {own['forwards']} forward passes")
            # `threshold` is this server's own field: lower is faster, and less accurate.
            stream = client.completions.create(
                model=told["model"], prompt=prompt, stream=True, extra_body={"threshold": 0.9}
            )
            for chunk in stream:
                print(chunk.choices[0].text, end="|", flush=True)  # one finished block per chunk
            print()
        server.terminate()  # requests in progress are finished


if __name__ == "__main__":
    main()
