"""Sessions over one model that step together, against the same sessions one after another.

A Llama of 256 x 4 with a vocabulary of 32k. ``together`` submits a step of every session, then
collects: one forward. ``apart`` steps one session at a time, each in a cache of its own. ``alone``
is a single session.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Row, interleaved, one_thread, save
from toys import llama

from langchain_ensemble.members.base import MemberPrompt
from langchain_ensemble.members.fit import context_of
from langchain_ensemble.members.forward import Engine
from langchain_ensemble.members.pool import Pool
from langchain_ensemble.members.session import HFSession
from langchain_ensemble.members.weights import Weights

COUNTS, LENGTHS, ROUNDS, STEPS = (2, 8), (64, 1024), 9, 6


def sessions(weights: Weights, pool: Pool | None, lengths: list[int]) -> list[HFSession]:
    """Sessions with so many ids read; without a pool each is by itself."""
    made = []
    module = weights.module
    for length in lengths:
        how = weights.rollback
        engine = Engine(
            "main", module, weights.device, module.dtype, how.width, context_of(module.config),
            how.masks,
        )  # fmt: skip
        made.append(HFSession(engine, pool))
        made[-1].prefill([MemberPrompt(tuple(range(3, 3 + length)))])
    return made


def stepping(listed: list[HFSession]) -> Callable[[], None]:
    """Some steps of sessions that submit before any collects."""

    @torch.inference_mode()
    def step() -> None:
        for _ in range(STEPS):
            pending = [one.submit([[7]]) for one in listed]
            for one, work in zip(listed, pending, strict=True):
                one.collect(work)

    return step


def main() -> None:
    """Measure and save."""
    one_thread()
    weights = Weights.of(llama(32_000, 256, 4), "benchmark")
    rows = []
    for length in LENGTHS:
        for count in COUNTS:
            lengths = [length + 3 * place for place in range(count)]
            pool = Pool()
            work = {
                "together": stepping(sessions(weights, pool, lengths)),
                "apart": stepping(sessions(weights, None, lengths)),
                "alone": stepping(sessions(weights, None, lengths[:1])),
            }
            times = interleaved(work, rounds=ROUNDS)
            on = f"256 x 4, {count} sessions at {length} ids"
            told = {name: times.ms(name) / STEPS for name in work}
            rows += [
                Row("together / one after another", on, times.ratio("together", "apart"), unit="x",
                    more={"ms a step": told, "rows copied": pool.copied}),
                Row("together / one session alone", on, times.ratio("together", "alone"), unit="x"),
            ]  # fmt: skip
    save("pool", rows)


if __name__ == "__main__":
    main()
