"""Samples tokens at a temperature from the top-k that an engine returns. Pure numpy, on the host."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backend import Ints, Proposal
from ..contract import Contract
from ..errors import UserError

HOTTEST = 5.0  # above, samples are nearly uniform over the K tokens
SEEDS = 2**63  # seeds are int64: from -SEEDS to SEEDS - 1
DRAWN_BITS = 32  # of a random seed: short enough to be typed again


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples the tokens of an answer. Samples depend only on the seed, the position in the answer and the step."""

    temperature: float
    seed: int

    def __call__(self, proposal: Proposal, first: int, step: int) -> Proposal:
        """Returns a canvas's proposal [block] with a token sampled per position, without the top tokens.

        first: the canvas's first position in the answer, below 0 if it begins with the prompt's tail; step: the
        answer's step, from 0. A token is sampled from softmax(top_logprob / temperature) over the K tokens. Its
        confidence is its own probability at temperature 1, over the whole vocabulary, as in LLaDA's generate and
        `train.collect`: the gate's threshold was chosen for such confidences, and a temperature must not make a model
        look more or less confident than it is. The model's entropy stays as it is.
        """
        if proposal.top_token is None or proposal.top_logprob is None:
            raise ValueError("the engine gave no top tokens to sample from")
        chosen = sample_tokens(
            proposal.top_logprob, self.temperature, sample_uniforms(self.seed, first, len(proposal.token), step)
        )
        token = np.take_along_axis(proposal.top_token, chosen[:, None], axis=1)[:, 0]
        log_prob = np.take_along_axis(proposal.top_logprob, chosen[:, None], axis=1)[:, 0]
        return replace(proposal, token=token, confidence=np.exp(log_prob), top_token=None, top_logprob=None)


def sample_tokens(log_prob: NDArray[np.floating], temperature: float, uniform: NDArray[np.float64]) -> Ints:
    """Samples one token per row from softmax(log_prob / temperature); returns its place in the row. int64 [n]

    log_prob [n, K], best first; uniform [n], in [0, 1), decides the sample. A token at -inf is never sampled.
    """
    with np.errstate(over="ignore"):  # near a temperature of 0 all but the best, which is 0 here, go to -inf
        heat = (log_prob.astype(np.float64) - log_prob[:, :1]) / temperature
    reached = np.cumsum(np.exp(heat), axis=1)  # [n, K]
    place: Ints = (reached <= (uniform * reached[:, -1])[:, None]).sum(axis=1)
    return place


def sample_uniforms(seed: int, first: int, count: int, step: int) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each of `count` positions from `first`, 0 for those below 0. float64 [count]

    Philox (Salmon et al. 2011) is a function of a key, here the seed, and a counter, here (position, step). Its numbers
    are the same in every version of numpy; the first of four numbers per counter is used.
    """
    start = max(first, 0)
    philox = np.random.Philox(key=seed % 2**64, counter=[start, step, 0, 0])
    whole = philox.random_raw(4 * (first + count - start))[::4]
    return np.concatenate((np.zeros(start - first), (whole >> np.uint64(11)) * 2.0**-53))


def make_sampler(temperature: float, seed: int | None) -> Sampler | None:
    """Returns an answer's sampler, its seed chosen now if none is given; None at a temperature of 0."""
    if temperature == 0:
        return None
    return Sampler(temperature, secrets.randbits(DRAWN_BITS) if seed is None else int(seed))


def check_sampling(contract: Contract, temperature: float, seed: int | None) -> None:
    """Raises UserError, before any work, if an engine of the contract cannot sample at this temperature and seed."""
    if not 0 <= temperature <= HOTTEST:
        raise UserError(f"temperature is {temperature:g}; expected 0, for the top-1 tokens, to {HOTTEST:g}")
    if seed is not None and not (isinstance(seed, int | np.integer) and -SEEDS <= seed < SEEDS):
        raise UserError(f"seed is {str(seed)[:30]}; expected a whole number of 64 bits")
    if temperature and not contract.top_k:
        raise UserError(
            f"temperature is {temperature:g}, but this engine gives its top-1 token alone; leave it out, or export "
            "with --top-k 32"
        )
