"""Serves a bundle on several replicas with Ray Serve: python -m samples.ray_serve samples/student.bundle --replicas 1:4

The HTTP API is that of runtime.serve, whose options follow `--`: python -m samples.ray_serve BUNDLE -- --workers 1
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from runtime.bundle.store import read
from runtime.cli import DONE, Parser, parse_at_least_1, parse_port, run
from runtime.engines.ort.threads import count_physical_cores
from runtime.engines.registry import choose_engines
from runtime.errors import UserError
from runtime.serve import parse_options as server_options
from runtime.server.sockets import listen

STORE = 100 << 20  # bytes of Ray's object store, which we do not use


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    return run(lambda: serve_fleet(parse_options(given[:cut]), given[cut + 1 :]))


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(prog="python -m samples.ray_serve",
        description=(
                "Serves a bundle on several replicas with Ray Serve, in the HTTP API of blockstep serve, whose options "
                "follow --. SIGTERM ends it after the requests in progress."
            ))  # fmt: skip
    add = p.add_argument
    add(
        "bundle",
        metavar="BUNDLE",
        help="bundle, a folder that blockstep export onnx wrote, at that path on every machine",
    )
    add("--replicas", type=parse_span, default=(2, 2), metavar="LEAST:MOST",
        help="range of the number of replicas, which follows the load; or one number (default: 2)")  # fmt: skip
    add("--ongoing", type=parse_at_least_1, default=4, metavar="N",
        help=(
                "target of requests per replica, waiting ones included; more of them start another replica (default: "
                "4)"
            ))  # fmt: skip
    add(
        "--cpus",
        type=float,
        default=1,
        metavar="N",
        help="CPU cores per replica, and threads of its engine (default: 1)",
    )
    add("--gpus", type=float, default=0, metavar="N", help="GPUs per replica (default: 0)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=parse_port, default=8000, metavar="N", help="TCP port (default: 8000)")
    add(
        "--address",
        metavar="ADDRESS",
        help="address of a Ray cluster to join, or auto (default: Ray on this machine alone)",
    )
    add("--json", action="store_true", help="print one JSON object with the URL once the server listens")
    return p.parse_args(argv)


def parse_span(text: str) -> tuple[int, int]:
    """Parses LEAST:MOST, or one number for both."""
    least, _, most = text.partition(":")
    found = parse_at_least_1(least), parse_at_least_1(most or least)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{found[0]} is more than {found[1]}")
    return found


def serve_fleet(args: argparse.Namespace, given: Sequence[str]) -> int:
    """Starts Ray on this machine, or joins a cluster, and serves until SIGTERM or Ctrl-C."""
    server = [args.bundle, "--threads", str(max(1, int(args.cpus))), "--host", args.host, *given]
    asked = server_options(server)
    choose_engines(read(Path(args.bundle)), asked.engine, asked.device)  # mistakes are reported before any start
    if args.address is None:
        listen(args.host, args.port).close()
    # Ray would send usage reports to its makers. An empty value counts as unset.
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ.get("RAY_USAGE_STATS_ENABLED") or "0"
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")  # Ray's 5 s are too short on a busy machine
    if args.address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # makes Ray bind to the loopback address only
    try:
        import ray
        from ray import serve

        from .app import make_application
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'blockstep[serve,ray]'") from None
    stop, out = threading.Event(), sys.stdout
    with redirect_stdout(sys.stderr):  # Ray's own messages go there
        start_ray(args)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        try:
            try:
                serve.start(http_options={"host": args.host, "port": args.port})
                serve.run(
                    make_application(server, *args.replicas, args.ongoing, args.cpus, args.gpus), name="blockstep"
                )
            except (RuntimeError, TimeoutError) as error:
                where = "Ray's session_latest/logs/serve"
                raise UserError(f"the replicas could not start ({error}); {where} has more") from None
            url = f"http://{args.host}:{args.port}"
            if args.json:
                print(json.dumps({"url": url}), file=out, flush=True)
            print(f"serving {args.bundle} at {url}", file=sys.stderr, flush=True)
            while not stop.wait(1):
                pass
            serve.delete("blockstep")  # its replicas finish their requests while the proxy is still up
        finally:
            serve.shutdown()
            ray.shutdown()
    return DONE


def start_ray(args: argparse.Namespace) -> None:
    """Starts Ray on this machine alone, or joins the named cluster."""
    import ray

    told: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if args.address is not None:
        ray.init(address=args.address, **told)
        return
    cores = max(count_physical_cores(), math.ceil(args.replicas[1] * args.cpus))
    ray.init(address="local", num_cpus=cores, object_store_memory=STORE, include_dashboard=False, **told)


if __name__ == "__main__":
    sys.exit(main())
