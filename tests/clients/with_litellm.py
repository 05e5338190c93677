"""Calls a server with LiteLLM, unmodified, and prints what it answers as one JSON object."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm


def main(url: str, prompt: str) -> None:
    options: dict[str, Any] = {"model": "openai/student", "api_base": url, "api_key": "none"}
    messages = [{"role": "user", "content": prompt}]
    chat = litellm.completion(messages=messages, **options)
    streamed = litellm.completion(messages=messages, stream=True, **options)
    # A conversation as its users send it back: LiteLLM's own message, with all of its fields.
    again = litellm.completion(messages=[*messages, chat.choices[0].message.model_dump(), *messages], **options)
    raw = litellm.text_completion(prompt=prompt, **{**options, "model": "text-completion-openai/student"})
    found = {
        "chat": chat.choices[0].message.content,
        "chat_streamed": "".join(part.choices[0].delta.content or "" for part in streamed),
        "again": again.choices[0].message.content,
        "completion": raw.choices[0].text,
        "response": litellm.responses(input=prompt, **options).output_text,
        "response_streamed": "".join(
            event.delta for event in litellm.responses(input=prompt, stream=True, **options)
            if event.type == "response.output_text.delta"
        ),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
