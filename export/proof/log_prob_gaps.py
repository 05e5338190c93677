"""Computes how far an engine's log-probabilities are from PyTorch's: of all tokens, of top tokens, of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from runtime.backend import Floats, Forward, Proposal
from runtime.contract import Contract

MOST = 16  # random candidates per logits row, or the contract's `candidates` if those are fewer
NOTICED = -20.0  # log-probability; a token below it in both PyTorch and the engine is not compared


def add_candidates(forward: Forward, contract: Contract, barred: Sequence[int], number: int) -> Forward:
    """Returns the forward; with random candidates, if the contract takes candidates and the forward has none.

    barred: ids that are never proposed, and so are not candidates. number: the seed, such as the forward pass's number,
    so that each pass gets other candidates.
    """
    if not contract.candidates or forward.candidates is not None:
        return forward
    shape = (*forward.rows.shape, min(contract.candidates, MOST))
    known = np.setdiff1d(np.arange(contract.vocab), barred)
    return replace(forward, candidates=np.random.default_rng(number).choice(known, shape))


def subtract(log_probs: Tensor, theirs: Tensor) -> Floats:
    """Returns an engine's log-probabilities `theirs` minus PyTorch's `log_probs`, all [1, n, vocab].

    The difference is 0 if both are below NOTICED, as for barred ids.
    """
    ignored = (theirs < NOTICED) & (log_probs < NOTICED)  # False for a NaN, so that it is reported
    return torch.where(ignored, 0.0, theirs - log_probs).numpy()


def subtract_top(log_probs: Tensor, theirs: Proposal) -> Floats:
    """Returns how far the log-probabilities of an engine's top tokens are from PyTorch's. [2, 1, n, K]

    Index 0 compares with PyTorch's for the same tokens, index 1 with PyTorch's at the same ranks. Compared by token
    alone, a list that lacks the top-1 tokens would pass if the tokens in it have the right values. The difference is 0
    if both are below NOTICED. log_probs: PyTorch's, of all tokens [1, n, vocab].
    """
    given, named = torch.from_numpy(theirs.top_logprob), torch.from_numpy(theirs.top_token)
    ours = torch.stack((log_probs.gather(-1, named), log_probs.topk(named.shape[-1]).values))
    ignored = (given < NOTICED) & (ours < NOTICED)  # False for a NaN, so that it is reported
    return torch.where(ignored, 0.0, given - ours).numpy()


def subtract_candidates(log_probs: Tensor, forward: Forward, theirs: Proposal) -> Floats:
    """Returns how far an engine's log-probabilities of the candidates are from PyTorch's. [1, n, C]

    The difference is 0 if both are below NOTICED. log_probs: PyTorch's, of all tokens [1, n, vocab].
    """
    if forward.candidates is None or theirs.candidate_logprob is None:
        raise AssertionError("the forward pass has no candidates, or the engine gave none")
    given = torch.from_numpy(theirs.candidate_logprob)
    ours = log_probs.gather(-1, torch.from_numpy(forward.candidates))
    ignored = (given < NOTICED) & (ours < NOTICED)  # False for a NaN, so that it is reported
    return torch.where(ignored, 0.0, given - ours).numpy()
