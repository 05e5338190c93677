"""Runs inside the C library: keeps models by number, reads requests from C's structs, writes answers into them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Ints
from ..bundle import strict_json
from ..decisions.document import TypedDecision
from ..decoding.batch import Step
from ..decoding.request_state import Result
from ..engines.registry import OpenOptions
from ..errors import DeviceError, NumericalError, UserError, describe_error
from ..model import Block, Model, ModelPool, blocks, yield_while_wanted
from ..open_bundle import load
from ..proof.bundle_proof import prove_bundle

CANCELLED = Result((), "cancelled", 0, 0, 0, 0, False)


class Differs(Exception):
    """Reports that an engine missed a bound of its recorded reference."""


class HostCalls:
    """Implements the calls from C, with `ffi` and `lib` of cffi's module. `bind` turns what they raise into codes."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        # Handles are numbers, not addresses, so that a use after close, or a second close, is reported and harmless.
        self._models: dict[int, tuple[ModelPool, tuple[Any, ...]]] = {}  # each with its contract in C's structs
        self._numbers = count(1)

    def load(self, bundle: Any, options: Any, out: Any) -> None:
        options = options or self._ffi.new("blockstep_options *")
        model = load(
            self._read_text(bundle, "bundle"),
            engine=self._read_text(options.engine, "engine") or None,
            threads=options.threads or None,
            verify="always" if options.verify_always else "first",
            device=self._read_text(options.device, "device") or "cpu",
            trust_engine=bool(options.trust_engine),
            allow_spinning=not options.no_allow_spinning,
        )
        if options.at_once < 0:
            raise UserError(f"at_once is {options.at_once}; expected at least 1, or 0 for the default")
        number = next(self._numbers)
        self._models[number] = ModelPool(model, options.at_once), self._make_contract(model)
        out[0] = self._ffi.cast("blockstep_model *", number)

    def verify(self, bundle: Any, options: Any) -> None:
        options = options or self._ffi.new("blockstep_options *")
        device = self._read_text(options.device, "device") or "cpu"
        spinning = not options.no_allow_spinning
        opened = OpenOptions(device, options.threads or None, bool(options.trust_engine), spinning)
        engine = self._read_text(options.engine, "engine") or None
        proof = prove_bundle(Path(self._read_text(bundle, "bundle")), engine, opened)
        if not proof.ok:
            raise Differs("; ".join(f"{check.name}: {check.detail}" for check in proof.checks if not check.ok))

    def generate(self, model: Any, request: Any, decoding: Any, out: Any) -> None:
        pool, _ = self._find_loaded(model)
        prepared = pool.models[0].request(
            self._read_prompt(request),
            max_new_tokens=request.max_new_tokens or None,
            raw=bool(request.raw),
            threshold=float(request.threshold[0]) if request.threshold else None,
            temperature=decoding.temperature,
            seed=int(decoding.seed[0]) if decoding.seed else None,
            mode=self._read_text(decoding.mode, "mode") or None,
        )

        def is_wanted() -> bool:
            return not self._lib.raised(request.cancel)

        lent = pool.take_while(is_wanted)
        if lent is None:
            return self._put(out, [], CANCELLED)
        try:
            done, result = self._run(lent.steps(prepared.prompt, prepared.options), lent, request, is_wanted)
        finally:
            pool.give(lent)
        return self._put(out, done, result)

    def decide(self, model: Any, request: Any, schema: Any, deciding: Any, out: Any) -> None:
        pool, _ = self._find_loaded(model)
        if request.max_new_tokens or request.on_block:
            raise UserError("max_new_tokens or on_block is given, which a decision has no use for; leave them 0")
        text, prompt = self._read_text(schema, "schema"), self._read_prompt(request)
        try:
            parsed_schema = strict_json.parse(text)
        except ValueError as error:
            raise UserError(f"schema is not JSON ({error}); expected a JSON schema") from None
        if not isinstance(parsed_schema, dict):
            raise UserError(f"schema is {text[:40]!r}; expected a JSON schema, an object")
        probability: Any = self._read_text(deciding.probability, "probability") or "parallel"
        if deciding.max_forwards < 0:
            raise UserError(f"max_forwards is {deciding.max_forwards}; expected at least 1, or 0 for all")

        def is_wanted() -> bool:
            return not self._lib.raised(request.cancel)

        lent = pool.take_while(is_wanted)
        if lent is None:
            self._put_decision(out, TypedDecision("", None, (), 0, True, probability), 0.0)
            return
        started = time.perf_counter()
        try:
            decided = lent.decide(
                prompt,
                parsed_schema,
                probability=probability,
                max_forwards=deciding.max_forwards or None,
                threshold=float(request.threshold[0]) if request.threshold else None,
                raw=bool(request.raw),
                wanted=is_wanted,
            )
        finally:
            pool.give(lent)
        self._put_decision(out, decided, time.perf_counter() - started)

    def describe(self, model: Any, out: Any) -> None:
        out[0] = self._find_loaded(model)[1][0]

    def close(self, model: Any) -> None:
        self._find_loaded(model)
        self._models.pop(self._read_number(model), None)

    def _run(
        self, steps: Generator[Step, None, None], model: Model, request: Any, wanted: Callable[[], bool]
    ) -> tuple[list[Block], Result]:
        """Returns the blocks and the result; passes each block to the request's on_block as it comes."""
        done: list[Block] = []
        try:
            for block in blocks(yield_while_wanted(steps, wanted), model.tokenizer):
                done.append(block)
                stop = bool(request.on_block) and self._hand_out(block, request)
                if block.result is not None:
                    return done, block.result
                if stop:
                    break
            return done, CANCELLED
        finally:
            steps.close()

    def _hand_out(self, block: Block, request: Any) -> bool:
        new, text, ids = self._ffi.new, block.text.encode(), block.token_ids
        kept = new("char[]", text), new("int64_t[]", ids)  # cffi frees them with this tuple
        fields = (block.index, block.result is not None, kept[0], len(text), kept[1], len(ids))
        return bool(request.on_block(new("blockstep_block *", fields), request.user))

    def _put(self, out: Any, done: Sequence[Block], result: Result) -> None:
        """Writes the answer into memory that C owns, if the caller passed a pointer for it."""
        if not out:
            return
        text = "".join(block.text for block in done).encode()
        ids = [token for block in done for token in block.token_ids]
        answer = self._lib.new_answer(len(text), len(ids))
        if not answer:
            raise MemoryError("no memory is left for the answer")
        self._ffi.memmove(self._ffi.cast("char *", answer.text), text, len(text))
        self._ffi.memmove(self._ffi.cast("int64_t *", answer.token_ids), np.array(ids, np.int64), 8 * len(ids))
        answer.finish = getattr(self._lib, f"BLOCKSTEP_{result.finish.upper()}")
        for name in ("steps", "commits", "forwards", "blocks", "seconds", "prefill_seconds"):
            setattr(answer, name, getattr(result, name))
        out[0] = answer

    def _put_decision(self, out: Any, decided: TypedDecision[Any], seconds: float) -> None:
        """Writes the decision into memory that C owns."""
        text, plain = decided.text.encode(), json.dumps(decided.as_json(), allow_nan=False).encode()
        made = self._lib.new_decision(len(text), len(plain))
        if not made:
            raise MemoryError("no memory is left for the decision")
        self._ffi.memmove(self._ffi.cast("char *", made.text), text, len(text))
        self._ffi.memmove(self._ffi.cast("char *", made.json), plain, len(plain))
        made.partial, made.forwards, made.seconds = decided.partial, decided.forwards, seconds
        out[0] = made

    def _read_prompt(self, request: Any) -> str | Ints:
        if bool(request.prompt) == bool(request.token_ids):
            which = "both" if request.prompt else "neither"
            raise UserError(f"the request has {which} prompt and token_ids; give one of them")
        if request.prompt:
            return self._read_text(request.prompt, "prompt")
        held = self._ffi.buffer(request.token_ids, 8 * request.token_count)
        return np.frombuffer(held, np.int64).copy()  # [token_count]

    def _read_text(self, pointer: Any, name: str) -> str:
        try:
            return str(self._ffi.string(pointer).decode()) if pointer else ""
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8 at byte {error.start}; give UTF-8 text") from None

    def _read_number(self, model: Any) -> int:
        return int(self._ffi.cast("uintptr_t", model))

    def _find_loaded(self, model: Any) -> tuple[ModelPool, tuple[Any, ...]]:
        found = self._models.get(self._read_number(model))
        if found is None:
            raise UserError("the model is NULL or was closed; expected one that blockstep_load gave, load it again")
        return found

    def _make_contract(self, model: Model) -> tuple[Any, ...]:
        """Returns the contract's struct, and after it the objects that it points to, to keep them alive."""
        c, new = model.contract, self._ffi.new
        plain = {**c.as_dict(), "gate": asdict(model.gate)}
        whole = {"engine": model.engine, "precision": model.precision, "contract": plain}
        ends, text = new("int64_t[]", c.eos_ids), new("char[]", json.dumps(whole).encode())
        struct = new("blockstep_contract *")
        for name in ("block", "canvas", "capacity", "vocab", "mask_id", "pad_id"):
            setattr(struct, name, getattr(c, name))
        struct.max_prompt, struct.threshold = c.max_prompt or 0, model.gate.threshold
        struct.eos_ids, struct.eos_count, struct.json = ends, len(c.eos_ids), text
        return struct, ends, text


def bind(ffi: Any, lib: Any) -> None:
    """Makes a HostCalls the target of C's calls. `ffi` and `lib` are those of the module that cffi embeds."""
    library = HostCalls(ffi, lib)
    for call in (library.load, library.verify, library.generate, library.decide, library.describe, library.close):
        ffi.def_extern(name=f"python_{call.__name__}", error=lib.BLOCKSTEP_INTERNAL)(_wrap_with_code(lib, call))


def _wrap_with_code(lib: Any, call: Callable[..., None]) -> Callable[..., int]:
    """Wraps a call so that it returns a code, and keeps its error's line for the calling thread."""
    kinds = (
        (UserError, lib.BLOCKSTEP_MISTAKE),
        (Differs, lib.BLOCKSTEP_DIFFERS),
        (NumericalError, lib.BLOCKSTEP_NUMERICAL),
        (DeviceError, lib.BLOCKSTEP_DEVICE),
        (ModuleNotFoundError, lib.BLOCKSTEP_PYTHON),
    )

    def call_with_code(*given: Any) -> int:
        try:
            call(*given)
        except BaseException as error:  # no exception may reach the host
            line = describe_error(error)
            if isinstance(error, ModuleNotFoundError):
                line += f" in {sys.prefix}; pip install 'blockstep[cpu,capi]' into it"
            for kind, code in kinds:
                if isinstance(error, kind):
                    lib.tell(line.encode())
                    return int(code)
            lib.tell(f"{type(error).__name__}: {line}".encode(errors="replace"))
            return int(lib.BLOCKSTEP_INTERNAL)
        return int(lib.BLOCKSTEP_OK)

    return call_with_code
