"""The faults that planted_faults.py plants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """An edit: `old`, which occurs in `file` once, becomes `new`.

    tests: names, without `test_` and `.py`, of test files; one of them has to notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


FAULTS = (
    # decoding
    Fault(
        "the gate's threshold is exclusive",
        "runtime/decoding/gate.py",
        '">=": operator.ge',
        '">=": operator.gt',
        "decoding_gate",
    ),
    Fault(
        "the end-token guard is ignored",
        "runtime/decoding/gate.py",
        "free = eligible if held is None else eligible & ~held",
        "free = eligible",
        "decoding_gate",
    ),
    Fault(
        "the factor rule counts one too many",
        "runtime/decoding/gate.py",
        "np.where((n + 1) * (1 - best)",
        "np.where(n * (1 - best)",
        "decoding_gate",
    ),
    Fault(
        "a request's own threshold is that of its neighbor",
        "runtime/decoding/batch.py",
        "[limits[s.threshold] for s in chosen]",
        "[limits[chosen[0].threshold] for _ in chosen]",
        "decoding_batch decoding_loop",
    ),
    Fault(
        "a kept prefix ends inside a block",
        "runtime/decoding/block_layout.py",
        "return short + (most - short) // block * block if most >= short else 0",
        "return most if most >= short else 0",
        "decoding_prefix_cache",
    ),
    Fault(
        "next-token-shifted rows are read one too far",
        "runtime/decoding/sequence.py",
        "return Inputs(ids, visible, past, pending + targets - shift, targets) if len(targets) else None",
        "return Inputs(ids, visible, past, pending + targets, targets) if len(targets) else None",
        "decoding_cached decoding_loop",
    ),
    Fault(
        "the end token is cut off the answer",
        "runtime/decoding/request_state.py",
        "fresh[: ends[0] + 1]",
        "fresh[: ends[0]]",
        "decoding_loop",
    ),
    Fault(
        "a prompt of prompt alignment is causal by block",
        "runtime/decoding/block_layout.py",
        'return np.maximum(ends, prompt) if contract.alignment == "prompt" else ends',
        "return ends",
        "decoding_cached decoding_loop decoding_prefix_cache masking_all_blocks masking_trajectory_states",
    ),
    Fault(
        "sampling forgets the step",
        "runtime/decoding/sampling.py",
        "counter=[start, step, 0, 0]",
        "counter=[start, 0, 0, 0]",
        "decoding_sampling decoding_sampled",
    ),
    Fault(
        "a chunk of a prefill keeps the old offset",
        "runtime/engines/trt/chunked_prefill.py",
        "forward.past_length + start",
        "forward.past_length",
        "trt_chunked_prefill",
    ),
    # text
    Fault(
        "half a character is given out",
        "runtime/text/tokenizer.py",
        "settled = text.rstrip(BROKEN)",
        "settled = text",
        "text_tokenizer",
    ),
    Fault(
        "a user's text may hold special tokens",
        "runtime/text/tokenizer.py",
        "self._plain.encode_special_tokens = True",
        "self._plain.encode_special_tokens = False",
        "text_tokenizer text_chat_template",
    ),
    Fault(
        "template arguments overrule nothing",
        "runtime/text/chat_template.py",
        "given = {**_copy_plain(arguments), ",
        "given = {",
        "text_chat_template",
    ),
    # bundle
    Fault(
        "the hash of a bundle's file is not checked",
        "runtime/bundle/store.py",
        "and _hash_readable_file(file) != expected:",
        "and not _hash_readable_file(file):",
        "bundle_store",
    ),
    Fault(
        "an engine of another contract joins a bundle",
        "runtime/bundle/store.py",
        "if stay and old.contract != contract:",
        "if stay and False:",
        "bundle_store export_onnx",
    ),
    Fault(
        "a key that stands twice in a manifest passes",
        "runtime/bundle/strict_json.py",
        "if len(values) != len(pairs):",
        "if len(values) > len(pairs):",
        "bundle_store bundle_any_manifest reliability_sections",
    ),
    # server
    Fault(
        "a stop string stays in the text",
        "runtime/server/stop_strings.py",
        "self._held[: end - max(complete)]",
        "self._held[:end]",
        "server_openai server_fields",
    ),
    Fault(
        "no API key is needed",
        "runtime/server/auth.py",
        'if scheme.lower() == "bearer" and any(matches):',
        'if scheme.lower() == "bearer":',
        "server_command server_openai server_load",
    ),
    Fault(
        "any name may be in the Host header",
        "runtime/server/auth.py",
        "if self._hosts is not None and parse_host_name",
        "if self._hosts is None and parse_host_name",
        "server_openai server_command server_hostile_requests",
    ),
    Fault(
        "the queue has no end",
        "runtime/server/worker_pool.py",
        "if len(self._jobs) + self.running + count > self.most:",
        "if False:",
        "server_load server_openai",
    ),
    Fault(
        "the request's threshold is not passed on",
        "runtime/server/worker_pool.py",
        "self.threshold if own is None else own",
        "self.threshold",
        "server_openai server_load",
    ),
    # TensorRT
    Fault(
        "an engine from a stranger is loaded",
        "runtime/engines/trt/admission.py",
        "if not trust and not trust_records.was_built(expected):",
        "if False:",
        "trt_admission",
    ),
    Fault(
        "an engine for a later GPU is loaded",
        "runtime/engines/trt/admission.py",
        "int(match[1]) <= capability",
        "int(match[1]) >= capability",
        "trt_admission",
    ),
    Fault(
        "the widest profile is one block short",
        "export/trt_engines/builder.py",
        "widest = min(capacity, (max_prompt or capacity) + block)",
        "widest = min(capacity, max_prompt or capacity)",
        "trt_engines_export trt_engines_networks trt_backend",
    ),
    Fault(
        "padding takes no heed of the room in the KV cache",
        "runtime/engines/trt/profile.py",
        "* BUCKET, profile.max_width, room))",
        "* BUCKET, profile.max_width))",
        "trt_backend",
    ),
    Fault(
        "new keys of a delta engine are kept one short",
        "runtime/engines/trt/engine.py",
        "if count := min(max(now - start, 0), width):",
        "if count := min(max(now - start - 1, 0), width):",
        "trt_backend",
    ),
    Fault(
        "every engine is called up to date",
        "export/trt_engines/plan.py",
        "if old.get(name) != new.get(name)]",
        "if False]",
        "trt_engines_export trt_commands",
    ),
    # export
    Fault(
        "the mask token may be proposed",
        "export/graph/step_graph.py",
        "barred[[checkpoint.decoding.mask_id, *checkpoint.list_missing_ids()]] = MASKED_LOGIT",
        "barred[checkpoint.list_missing_ids()] = MASKED_LOGIT",
        "graph_step export_onnx graph_top_k",
    ),
    Fault(
        "ids that are no token may be proposed",
        "export/graph/step_graph.py",
        "barred[[checkpoint.decoding.mask_id, *checkpoint.list_missing_ids()]] = MASKED_LOGIT",
        "barred[checkpoint.decoding.mask_id] = MASKED_LOGIT",
        "export_onnx",
    ),
    Fault(
        "the entropy lacks the top-1 token's term",
        "export/graph/step_graph.py",
        ".sum(-1, keepdim=True) - confidence.log()",
        ".sum(-1, keepdim=True)",
        "graph_step",
    ),
    Fault(
        "int8 scales span 255 steps",
        "export/quantization/ort_int8.py",
        "LARGEST = 127",
        "LARGEST = 255",
        "proof_quantized quantization_trt",
    ),
    Fault(
        "int4 packs the second value first",
        "export/quantization/ort_int4.py",
        "first, second = values[..., 0::2], values[..., 1::2]",
        "second, first = values[..., 0::2], values[..., 1::2]",
        "quantization_ort_int4 quantization_trt",
    ),
    Fault(
        "a NaN passes for a small difference",
        "export/proof/compare.py",
        "return float(np.max([before, ",
        "return float(np.nanmax([before, ",
        "proof_parity",
    ),
    # train
    Fault(
        "a noisy block sees its own clean tokens",
        "train/masking/all_blocks.py",
        "before = noise.find_begins(canvas, contract, positions)",
        "before = noise.find_begins(canvas, contract, positions) + contract.block",
        "masking_all_blocks",
    ),
    Fault(
        "the temperature's square is dropped",
        "train/losses.py",
        "return temperature**2 * _weigh",
        "return _weigh",
        "train_losses methods_distillation",
    ),
    Fault(
        "certainty is forced of wrong answers too",
        "train/losses.py",
        "right = student.argmax(-1) == send(target, student.device)",
        "right = student.argmax(-1) >= 0",
        "train_losses methods_distillation",
    ),
    Fault(
        "the consistency term is dropped",
        "train/methods/cdlm.py",
        " + weights.consistency * consistency",
        "",
        "methods_distillation",
    ),
    Fault(
        "a copied layer is not silent",
        "train/trainer/deepen.py",
        "if silent else tensor",
        "if not silent else tensor",
        "trainer_deepen",
    ),
    Fault(
        "calibration takes the point of most forward passes",
        "train/calibrate.py",
        "return min(within, key=lambda p: p.forwards, default=None)",
        "return max(within, key=lambda p: p.forwards, default=None)",
        "evaluation_calibrate",
    ),
    Fault(
        "an adapter's tensor that nobody knows is passed over",
        "train/huggingface/weights.py",
        "if name not in expected:",
        "if name not in expected and False:",
        "huggingface_reader huggingface_refusals",
    ),
)
