"""Accepts fields that have no effect here but that clients send, each with the values that change no answer.

The fields are those of OpenAI's API reference, of vLLM's request models (vllm/entrypoints/openai) and of llama.cpp's
tools/server/README.md. Any other field or value might change the answer, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .http_errors import Refusal

ANY = "any value"  # the field changes no answer, whatever it holds
PLAIN = {"type": "text"}

OPENAI: dict[str, Any] = {
    "n": [1], "best_of": [1], "top_p": [1], "frequency_penalty": [0], "presence_penalty": [0], "logit_bias": [{}, []],
    "echo": [False], "suffix": [""], "response_format": [PLAIN], "modalities": [["text"]],
    "verbosity": ["medium"], "service_tier": ["auto", "default", "flex", "scale", "priority"], "prediction": ANY,
    "tools": [[]], "functions": [[]], "tool_choice": ["none", "auto"], "function_call": ["none", "auto"],
    "parallel_tool_calls": ANY, "max_tool_calls": ANY,
    "store": ANY, "metadata": ANY, "user": ANY, "safety_identifier": ANY,
    "prompt_cache_key": ANY, "prompt_cache_options": ANY, "prompt_cache_retention": ANY,
    "text": [{"format": PLAIN, "verbosity": "medium"}, {"format": PLAIN}, {"verbosity": "medium"}, {}],
    "reasoning": [{}], "background": [False], "include": [[]], "truncation": ["disabled"], "top_logprobs": [0],
    "context_management": [[]],
}  # fmt: skip
VLLM: dict[str, Any] = {
    "use_beam_search": [False], "length_penalty": ANY, "top_k": [-1, 0], "min_p": [0], "repetition_penalty": [1],
    "stop_token_ids": [[]], "include_stop_str_in_output": [False], "ignore_eos": [False], "min_tokens": [0],
    "skip_special_tokens": [True], "spaces_between_special_tokens": ANY, "truncation_side": ANY, "bad_words": [[]],
    "add_generation_prompt": [True], "continue_final_message": [False], "add_special_tokens": [False],
    "documents": [[]], "media_io_kwargs": [{}], "mm_processor_kwargs": [{}], "vllm_xargs": [{}], "priority": [0],
    "include_reasoning": [True], "thinking_token_budget": [-1], "watermarking": [False], "stream_interval": [1],
    "return_tokens_as_token_ids": [False], "return_token_ids": [False], "return_token_offsets": [False],
    "return_prompt_text": [False], "cache_salt": ANY, "session_id": ANY, "request_id": ANY,
}  # fmt: skip
# A sampler's parameters have no effect while the sampler is off; the value that turns the sampler on is refused.
LLAMA_CPP: dict[str, Any] = {
    "cache_prompt": ANY, "n_cache_reuse": ANY, "id_slot": ANY, "n_keep": ANY, "n_discard": ANY, "n_cmpl": [1],
    "n_predict": [-1], "n_indent": [0], "n_probs": [0], "min_keep": [0], "post_sampling_probs": ANY,
    "t_max_predict_ms": [0],
    "typical_p": [1], "typ_p": [1], "tfs_z": [1], "top_n_sigma": [-1, 0], "dynatemp_range": [0],
    "dynatemp_exponent": ANY, "repeat_penalty": [1], "repeat_last_n": ANY, "penalize_nl": ANY,
    "xtc_probability": [0], "xtc_threshold": ANY, "mirostat": [0], "mirostat_tau": ANY, "mirostat_eta": ANY,
    "dry_multiplier": [0], "dry_base": ANY, "dry_allowed_length": ANY, "dry_penalty_last_n": ANY,
    "dry_sequence_breakers": ANY, "grammar": [""], "lora": [[]], "response_fields": [[]], "return_tokens": [False],
    "timings_per_token": [False], "return_progress": [False], "reasoning_format": ["none"], "sse_ping_interval": [-1],
}  # fmt: skip
NEUTRAL: dict[str, Any] = OPENAI | VLLM | LLAMA_CPP
# At a temperature of 0 the argmax is taken, which these fields do not change.
SAMPLING = ("top_p", "top_k", "min_p", "typical_p", "typ_p", "tfs_z", "top_n_sigma", "dynatemp_range", "min_keep")

NO_REASONING: dict[str, Any] = {"reasoning_effort": "none", "reasoning": {"effort": "none"}}
REASONING = ("thinking", "reasoning")  # a template with one of these words may let the model think by default
ADVICE = {"previous_response_id": "no answer is kept, so send the whole conversation as input"}


def check_neutral(fields: Mapping[str, Any], known: Collection[str], template: str) -> None:
    """Raises Refusal for the first field that is not in `known` and might have an effect.

    template: the chat template, which decides whether the model may think.
    """
    greedy = "temperature" in fields and is_same(fields["temperature"], 0)
    for name, value in fields.items():
        values, bare = NEUTRAL.get(name, []), drop_nulls(value)
        if name in known or values == ANY or any(is_same(bare, one) for one in values):
            continue
        if greedy and name in SAMPLING and type(value) in (int, float):
            continue
        if bare == NO_REASONING.get(name) and not any(word in template for word in REASONING):
            continue
        takes = f"; it may be {' or '.join(map(json.dumps, values))}, which changes nothing" if values else ""
        advice = ADVICE.get(name, "leave it out")
        shown = name[:80]
        raise Refusal(400, f"{shown} is not supported here{takes}; {advice}", shown, "unsupported_field")


def drop_nulls(value: Any) -> Any:
    """Returns an object without its null fields, and other JSON values as they are."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def is_same(value: Any, other: Any) -> bool:
    """Returns whether two JSON values are equal. Unlike in Python, True does not equal 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
