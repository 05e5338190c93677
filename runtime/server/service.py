"""Holds what a server serves, and how: the model, its workers and counters, names, limits and keys."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from ..model import Model
from .intake import Intake
from .metrics import Counters
from .worker_pool import Workers


@dataclass(frozen=True, slots=True)
class Service:
    """Holds what a server serves, and how.

    most: maximum new tokens per answer, None for no limit; body: maximum bytes in a request's body; hosts, keys: see
    `auth.AccessCheck`; log_prompts: whether the log has prompts, not only their lengths; started: Unix time in seconds.
    """

    model: Model
    name: str
    workers: Workers
    counters: Counters
    most: int | None = None
    body: int = 1 << 20
    hosts: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ()
    log_prompts: bool = False
    intake: Intake = field(default_factory=Intake)
    started: int = field(default_factory=lambda: int(time.time()))

    def make_card(self) -> dict[str, Any]:
        """Returns the model's entry in /v1/models, with what the page at / needs to know of the gate."""
        contract, gate, unit = self.model.contract, asdict(self.model.gate), self.model.gate.unit
        own = {"engine": self.model.engine, "block": contract.block, "capacity": contract.capacity, "gate": gate}
        own |= {
            "vocab": contract.vocab,
            "most": self.most,
            "top_k": contract.top_k,
            "candidates": contract.candidates,
            "modes": contract.modes,
        }
        known = unit if "block" in contract.modes else None  # other modes have no gate
        own["threshold_most"] = known and (known.shown or known.highest(contract.vocab))
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "blockstep", "blockstep": own}
