"""Differences of log-probabilities between an engine and PyTorch: of all tokens, of top tokens, of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from runtime.backend import Floats, Forward, Proposal
from runtime.contract import Contract

MOST = 16  # of a row
NOTICED = -20.0  # log p; a token below it, in PyTorch and in the engine, is as good as impossible and not compared


def with_candidates(forward: Forward, contract: Contract, barred: Sequence[int], number: int) -> Forward:
    """Returns the forward with candidates if the contract has any and it has none: tokens that are not barred, others
    in each forward pass, by its number."""
    if not contract.candidates or forward.candidates is not None:
        return forward
    shape = (*forward.rows.shape, min(contract.candidates, MOST))
    known = np.setdiff1d(np.arange(contract.vocab), barred)
    return replace(forward, candidates=np.random.default_rng(number).choice(known, shape))


def between(log_probs: Tensor, theirs: Tensor) -> Floats:
    """Differences of log-probabilities [1, n, vocab], 0 where both sides are below NOTICED, as barred ids are."""
    ignored = (theirs < NOTICED) & (log_probs < NOTICED)  # never so with a NaN
    return torch.where(ignored, 0.0, theirs - log_probs).numpy()


def between_top(log_probs: Tensor, theirs: Proposal) -> Floats:
    """Differences of an engine's top tokens to all log-probabilities [1, n, vocab]: by token, and by rank. [2, 1, n, K]

    A list that lacks the best tokens may be right about those that it has. 0 where both sides are below NOTICED.
    """
    given, named = torch.from_numpy(theirs.top_logprob), torch.from_numpy(theirs.top_token)
    ours = torch.stack((log_probs.gather(-1, named), log_probs.topk(named.shape[-1]).values))
    ignored = (given < NOTICED) & (ours < NOTICED)  # never so with a NaN
    return torch.where(ignored, 0.0, given - ours).numpy()


def between_candidates(log_probs: Tensor, forward: Forward, theirs: Proposal) -> Floats:
    """Differences of an engine's candidates to all log-probabilities [1, n, vocab]. [1, n, C]

    0 where both sides are below NOTICED.
    """
    if forward.candidates is None or theirs.candidate_logprob is None:
        raise AssertionError("the forward pass has no candidates, or the engine gave none")
    given = torch.from_numpy(theirs.candidate_logprob)
    ours = log_probs.gather(-1, torch.from_numpy(forward.candidates))
    ignored = (given < NOTICED) & (ours < NOTICED)  # never so with a NaN
    return torch.where(ignored, 0.0, given - ours).numpy()
