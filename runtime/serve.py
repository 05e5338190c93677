"""Serves an exported student over HTTP, in OpenAI's API and with a page: python -m runtime.serve student.bundle"""

from __future__ import annotations

import argparse
import gc
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import (
    DONE,
    ENGINE_OPTIONS,
    TEMPLATE_OPTION,
    choose_served_name,
    load_model,
    make_cli_parser,
    option,
    parse_at_least_1,
    parse_port,
    print_json,
    run,
)
from .engines.registry import choose_engines
from .errors import UserError
from .server.sockets import format_url, is_local, listen

if TYPE_CHECKING:
    from .model import Model
    from .server.service import Service

SWITCH = 0.0005  # seconds after which a busy thread lets others run, so that health checks are answered soon
LOCAL = ("localhost", "127.0.0.1", "[::1]")
DESCRIPTION = (
    "Serves an exported student over HTTP: /v1/completions, /v1/chat/completions, /v1/responses and /v1/models of "
    "OpenAI's API, a page at /, and /healthz, /readyz, /metrics. SIGTERM ends it after the requests in progress."
)
HELP = {  # help texts that do not fit on the line of their option below
    "allow-host": (
        "further host name that requests to a loopback address may carry, as after a proxy; repeatable; port and case "
        "are ignored (default: localhost and the loopback addresses alone)"
    ),
    "workers": (
        "threads that each decode one request at a time, with a KV cache of their own and shared weights (default: 2; "
        "1 on TensorRT)"
    ),
    "slots": (
        "batch size: requests decoded together in one forward pass, by an engine that takes batches; 1 means --workers "
        "threads instead (default: on a GPU the engine's batch, at most 16; on a CPU 1)"
    ),
    "adaptive-threshold": (
        "range of the threshold for requests that give none, in the gate's unit: the stricter end with an empty queue, "
        "the other end with a full one (default: the bundle's threshold, always)"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: serve(parse_options(argv)))


def serve(args: argparse.Namespace) -> int:
    """Loads the bundle and serves it until SIGTERM or Ctrl-C; then finishes the requests that were begun."""
    try:
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401

        from .server.app import make_app
        from .server.connection_limits import make_server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'blockstep[serve]'") from None
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with listen(args.host, args.port) as place:
        served, url = make_service(args, load_model(args)), format_url(place)
        app = make_app(served)
        if args.json:
            print_json({"url": url, "model": served.name})
            sys.stdout.flush()
        print(f"serving {served.name} at {url}", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises SIGTERM again when it has drained
        make_server(app, args.drain).run(sockets=[place])
    return DONE


def open_service(argv: Sequence[str]) -> Service:
    """Returns the service that the command would run with these options, for other kinds of servers."""
    args = parse_options(argv)
    return make_service(args, load_model(args))


def make_service(args: argparse.Namespace, model: Model) -> Service:
    """Returns the service of a loaded model, with workers as the options describe them."""
    from .server.adaptive_threshold import Pressure, parse_span
    from .server.metrics import Counters
    from .server.service import Service
    from .server.worker_pool import Workers, choose_decoders

    keys = read_api_keys(args.api_key_file)
    if args.workers is None and args.slots is not None and args.slots > model.contract.batch == 1:
        advice = advise_batching(Path(args.bundle), args.device)
        raise UserError(f"--slots is {args.slots}, but engine {model.engine} takes one sequence; {advice}")
    decoders = choose_decoders(model, args.workers, args.slots, args.device)
    sys.setswitchinterval(SWITCH)
    gc.freeze()  # a full collection, which stops all threads, then skips what is loaded and visits only requests
    threshold: Callable[[], float] | None = None
    gated = "block" in model.contract.modes and model.gate.unit is not None
    if args.adaptive_threshold is not None:
        if "block" not in model.contract.modes:
            raise UserError("--adaptive-threshold was given, but this model has no mode with a gate; leave it out")
        idle, full = parse_span(args.adaptive_threshold, model.gate, model.contract.vocab)
        threshold = Pressure(idle, full, args.queue, lambda: workers.waiting)
    workers = Workers(decoders, args.queue, threshold)
    own = (lambda: model.gate.threshold) if gated else None
    return Service(
        model,
        choose_served_name(args.bundle, args.name),
        workers,
        Counters(workers, threshold or own),
        most=args.max_tokens,
        body=args.max_body << 10,
        hosts=(*LOCAL, args.host, *args.allow_host) if is_local(args.host) else None,
        keys=keys,
        log_prompts=args.log_prompts,
    )


def advise_batching(path: Path, device: str) -> str:
    """Returns advice on how to get an engine that takes batches: one of the bundle's for this device, or a new one."""
    from .bundle.manifest import read

    bundle, names = read(path), list[str]()
    for engine in bundle.engines:
        with suppress(UserError):  # the device has no kernels for this engine
            names += [engine.name] if engine.takes_batches and choose_engines(bundle, engine.name, device) else []
    if names:
        return f"give --engine {' or '.join(names)}, or --slots 1"
    return "give --slots 1, or export one that takes batches: blockstep export onnx --dialect standard"


def read_api_keys(file: str | None) -> tuple[str, ...]:
    """Reads API keys from a file, one per line. Raises UserError if it cannot be read or has none."""
    if file is None:
        return ()
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {file} cannot be read ({error}); give a text file, one key per line") from None
    keys = tuple(filter(None, lines))
    if not keys:
        raise UserError(f"--api-key-file {file} has no key in it; write one per line")
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise UserError(f"--api-key-file {file} has a space in line {number}; expected one key per line")
        if not line.isascii():  # clients differ in how they encode such a header
            raise UserError(f"--api-key-file {file} has a key that is not ASCII in line {number}; give another key")
    return keys


def parse_host(text: str) -> str:
    """Parses a host name; refuses a URL or a pattern, which no client's `Host` header would match."""
    if not re.fullmatch(r"[\w.-]+(:\d+)?|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\](:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a host name; expected one as in box.example or box.example:80"
        )
    return text


OPTIONS = (
    option(
        "bundle", metavar="BUNDLE", help="bundle, a folder that blockstep export onnx or blockstep export trt wrote"
    ),
    option("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"),
    option("--port", type=parse_port, default=8000, metavar="N", help="TCP port; 0 takes a free one (default: 8000)"),
    option("--allow-host", action="append", type=parse_host, default=[], metavar="NAME", help=HELP["allow-host"]),
    option("--name", help="model name in the API (default: the bundle's name)"),
    option("--workers", type=parse_at_least_1, metavar="N", help=HELP["workers"]),
    option("--slots", type=parse_at_least_1, metavar="N", help=HELP["slots"]),
    option(
        "--queue",
        type=parse_at_least_1,
        default=32,
        metavar="N",
        help="maximum waiting requests; further ones get status 429 (default: 32)",
    ),
    option(
        "--max-tokens",
        type=parse_at_least_1,
        metavar="N",
        help="maximum new tokens per request (default: what the KV cache has room for)",
    ),
    option(
        "--max-body",
        type=parse_at_least_1,
        default=1024,
        metavar="KIB",
        help="maximum size of a request's body, in KiB (default: 1024)",
    ),
    option(
        "--api-key-file",
        metavar="FILE",
        help="file of API keys, one per line, of which /v1/ requires one (default: no key is required)",
    ),
    option("--adaptive-threshold", metavar="LOW:HIGH", help=HELP["adaptive-threshold"]),
    option(
        "--drain",
        type=parse_at_least_1,
        default=60,
        metavar="S",
        help="seconds after SIGTERM for the requests in progress (default: 60)",
    ),
    option("--log-prompts", action="store_true", help="log the prompts (default: their lengths alone)"),
    option("--json", action="store_true", help="print one JSON object with the URL once the server listens"),
    TEMPLATE_OPTION,
    *ENGINE_OPTIONS,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    return make_cli_parser(f"{__package__}.serve", DESCRIPTION, OPTIONS).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
