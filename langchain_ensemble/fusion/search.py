"""DeePEn's way back: from a point of the relative space to main's logits, by a few Adam steps.

``search`` is the authors' (arXiv:2404.12715): AdamW (betas 0.9 and 0.999, eps 1e-8, weight decay
0.01) on ``KL(target || softmax(z) R) / A``, cosine schedule from ``lr`` towards ``lr / 4`` with
period 10 *whatever the number of steps* (so more than 10 are refused: the rate would rise again).
Adam's steps are nearly signed, so ``lr`` is a trust region: no logit moves by more than
:func:`reach`.

Where we depart from the authors' code and why: the gradient is the closed form
``softmax(z) * (sum t - R (t / q)) / A``, without autograd; a batch of rows is one call. ``q`` is
floored, so a target on an anchor of no mass gives no NaN.

``search_support`` moves only the support of main's distribution; everything else is one
pseudo-token, the tail, with one row of the relative space. The tail takes no Adam step (moving it
invents mass) and only decays as its tokens would; it can never be chosen.

``certain`` and ``certified`` tell the winner where no search could change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from langchain_ensemble.errors import ConfigError

MAX_STEPS = 10
"""Period of the cosine schedule; beyond it the rate would rise again."""

UNKNOWN, END = -1, -2
"""What :func:`certified` says beside main's ids."""

_BETA1, _BETA2, _EPS, _DECAY = 0.9, 0.999, 1e-8, 0.01
_FLOOR = 1e-34  # of q; 1 / _FLOOR is still finite in float32


def check_search(steps: int, lr: float) -> None:
    """Refuse a search that the schedule does not define.

    Raises:
        ConfigError: Steps outside 0..10, or a rate that is negative or not finite.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MAX_STEPS:
        raise ConfigError(
            f"fusion='deepen' has search_steps={steps!r}; it must be a whole number in 0..10 (the "
            "schedule's rate would rise again after 10 steps; the paper uses 5)"
        )
    if not math.isfinite(lr) or lr < 0:
        raise ConfigError(
            f"fusion='deepen' has search_lr={lr!r}; it must be a number of at least 0 (the paper "
            "uses 0.15)"
        )


def rates(steps: int, lr: float) -> list[float]:
    """Learning rate of each step."""
    return [lr / 4 + 0.75 * lr * (1 + math.cos(math.pi * k / MAX_STEPS)) / 2 for k in range(steps)]


def decay(steps: int, lr: float) -> float:
    """Factor ``W`` that weight decay leaves of every logit."""
    return math.prod(1 - _DECAY * rate for rate in rates(steps, lr))


def reach(steps: int, lr: float) -> float:
    """Bound ``D`` on how far the Adam steps can move a logit (Cauchy-Schwarz on m / sqrt(v))."""
    total = 0.0
    for k, rate in enumerate(rates(steps, lr), start=1):
        mixed = sum((_BETA1**2 / _BETA2) ** j for j in range(k))
        bound = (1 - _BETA1) / (1 - _BETA1**k) * math.sqrt((1 - _BETA2**k) / (1 - _BETA2) * mixed)
        total += rate * bound
    return total


def search(logits: Tensor, relative: Tensor, target: Tensor, steps: int, lr: float) -> Tensor:
    """Move main's logits so that their relative representation comes near the target.

    Args:
        logits: Main's logits, [N, V] float32; -inf stays -inf.
        relative: Main's relative representation, [V, A].
        target: Where to go, [N, A], rows sum to 1.
        steps: Adam steps, 0..10.
        lr: Rate of the first step.

    Returns:
        [N, V] logits after the last step.
    """
    check_search(steps, lr)
    relative = relative.float()

    def gradient(z: Tensor, _: int) -> Tensor:
        probs = torch.softmax(z, -1)
        ratio = target / (probs @ relative).clamp_min(_FLOOR)
        return probs * (target.sum(-1, keepdim=True) - ratio @ relative.T) / relative.shape[-1]

    return _descend(logits, gradient, steps, lr)


def decays(steps: int, lr: float) -> list[float]:
    """Factor ``W_k`` that is left before each step, and after the last."""
    left = [1.0]
    for rate in rates(steps, lr):
        left.append(left[-1] * (1 - _DECAY * rate))
    return left


def tail_levels(rest: Tensor, steps: int, lr: float) -> Tensor:
    """The tail's logit before each step and after the last: all that the search asks of it.

    Args:
        rest: Main's logits with the support at -inf, [N, V].
        steps: Adam steps.
        lr: Rate of the first step.

    Returns:
        [steps + 1, N]: ``logsumexp(W_k rest)``; -inf where nothing is left.
    """
    top = rest.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    below = (rest - top).clamp_min(-1e30)  # finite: 0 times -inf is no number
    levels = [(left * below).exp_().sum(-1).log() + left * top[:, 0] for left in decays(steps, lr)]
    return torch.stack(levels)


def search_support(
    logits: Tensor,
    rows: Tensor,
    tails: Tensor,
    tail_row: Tensor,
    target: Tensor,
    steps: int,
    lr: float,
) -> Tensor:
    """Search over a support of tokens, with everything else as one pseudo-token.

    A step's cost is that of two passes over ``rows``; the vocabulary is not seen. Shapes are fixed
    and nothing is read on the host.

    Args:
        logits: Main's logits of the support, [N, S]; -inf in empty slots.
        rows: Their relative representation, [N, S, A] float32.
        tails: The tail's logit before each step, [steps (or more), N] (:func:`tail_levels`).
        tail_row: Where the rest stands in the relative space, [N, A], rows sum to 1.
        target: Where to go, [N, A], rows sum to 1.
        steps: Adam steps, 0..10.
        lr: Rate of the first step.

    Returns:
        [N, S] logits of the support; the rest ends at ``decay(steps, lr) * rest``.
    """
    check_search(steps, lr)
    total = target.sum(-1, keepdim=True)

    def gradient(z: Tensor, k: int) -> Tensor:
        probs = torch.softmax(torch.cat([z, tails[k][:, None]], -1), -1)
        inside = probs[:, :-1]
        q = torch.bmm(inside[:, None], rows)[:, 0] + probs[:, -1:] * tail_row
        ratio = target / q.clamp_min(_FLOOR)
        pull = torch.bmm(ratio[:, None], rows.transpose(1, 2))[:, 0]  # the fast order for N > 1
        return inside * (total - pull) / rows.shape[-1]

    return _descend(logits, gradient, steps, lr)


def _descend(
    logits: Tensor, gradient: Callable[[Tensor, int], Tensor], steps: int, lr: float
) -> Tensor:
    """AdamW; ``gradient(z, k)`` gets the logits and the number of steps done."""
    z = logits.float()
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for k, rate in enumerate(rates(steps, lr)):
        slope = gradient(z, k)
        first = _BETA1 * first + (1 - _BETA1) * slope
        second = _BETA2 * second + (1 - _BETA2) * slope * slope
        size = second.sqrt() / math.sqrt(1 - _BETA2 ** (k + 1)) + _EPS
        z = z * (1 - _DECAY * rate) - (rate / (1 - _BETA1 ** (k + 1))) * first / size
    return z


def certain(logits: Tensor, steps: int, lr: float, slack: float = 1e-4) -> Tensor:
    """Say where main's own margin already decides which *key* is best.

    A gap ``z1 - z2 > 2 D / W`` fixes the best key, dense and pruned alike, whatever auxiliaries say
    and with whatever weights. END is outside the search and not looked at: auxiliaries may still
    end the answer here, so a draft that runs on is verified for END when their rows arrive
    (:func:`certified` looks at both).

    Args:
        logits: Main's logits over its keys, [N, V], up to a constant a row: masked ids, control ids
            and END at -inf, ids with equal bytes added (``MemberDistribution.logprobs``, say).
        steps: Adam steps.
        lr: Rate of the first step.
        slack: Margin in nats for rounding.

    Returns:
        [N] bool.
    """
    top = _two_best(logits)
    return top[:, 0] - top[:, 1] > 2 * reach(steps, lr) / decay(steps, lr) + slack


def certified(logits: Tensor, end: Tensor, steps: int, lr: float, slack: float = 1e-4) -> Tensor:
    """Say which rows' best entry, a key or END, no auxiliary can change by what it says of keys.

    Where :func:`certain` holds, END, outside the search, wins if ``e > 1/2`` and loses if ``e <
    (1 - e) / (1 + e^(2D) sum_{j>1} e^(W (z_j - z_1)))``. For callers who need only the best key
    (``DeepenFuser.best``: greedy, without logprobs).

    Args:
        logits: Main's logits over its keys, [N, V], as in :func:`certain`; only differences within
            a row count.
        end: Probability of END in the fused row, [N]: all members with a say, pooled.
        steps: Adam steps.
        lr: Rate of the first step.
        slack: Margin in nats for rounding.

    Returns:
        [N] int64: main's id, :data:`END`, or :data:`UNKNOWN` where only the search can tell.
    """
    far, left = reach(steps, lr), decay(steps, lr)
    sure = certain(logits, steps, lr, slack)
    best, ids = logits.float().max(-1)
    below = logits.float().scatter(-1, ids[:, None], -torch.inf) - best[:, None]
    others = (left * below).exp().sum(-1)
    least = (1 - end) / (1 + math.exp(2 * far) * others)
    key = torch.where(sure & (end < least * (1 - slack)), ids, UNKNOWN)
    return torch.where(end > 0.5 + slack, END, key)


def _two_best(logits: Tensor) -> Tensor:
    """Best and second-best logit, [N, 2]; -inf where there is no second."""
    if logits.shape[-1] == 1:
        logits = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
    return logits.float().topk(2, dim=-1).values
