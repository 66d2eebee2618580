"""Calls at the same time: tokens per second of 1, 4, 8 and 16 ``invoke`` or ``ainvoke``.

Two Llamas of 256 x 4 with random weights and vocabularies of 8k and 6k. Every call has a prompt of
its own and 32 tokens. A round runs one forward a member for all calls, so the forwards of many
calls are as many as those of one. The clock is the wall's: what is measured is waiting.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import Row, Times, interleaved, one_thread, save
from small_members import llama, text

from langchain_ensemble import EnsembleLLM

CALLS = (1, 4, 8, 16)
TOKENS, ROUNDS = 32, 5
BAR = 3.0
"""Tokens per second of 8 calls over those of one: what one padded batch of 8 reaches, nearly."""


def main() -> None:
    """Measure and save."""
    one_thread()
    llm = EnsembleLLM(
        members={
            "main": str(llama(("byte-level", 8000), hidden=256, layers=4, positions=1024)),
            "aux": str(llama(("metaspace", 6000), hidden=256, layers=4, seed=1, positions=1024)),
        },
        fusion="unite",
        max_tokens=TOKENS,
        speculation="off",
        prefix_cache_gb=0.0,
    ).load()
    prompts = [text(4000)[200 * n : 200 * n + 120] for n in range(max(CALLS))]
    ways = {f"{n} invoke": threads(llm, prompts[:n]) for n in CALLS}
    ways |= {f"{n} ainvoke": tasks(llm, prompts[:n]) for n in CALLS}
    ways["batch of 8"] = lambda: llm.generate(prompts[:8])
    forwards = {name: counted(llm, way) for name, way in ways.items()}
    times = interleaved(ways, rounds=ROUNDS, warmup=0, clock=time.perf_counter)
    on = f"256 x 4 pair, {TOKENS} tokens a call, unite"
    rows = [
        Row(
            f"tokens per second, {n} {way} / 1 {way}",
            on,
            n * inverse(times, f"{n} {way}", f"1 {way}"),
            BAR if n == 8 else None,
            "x",
            least=True,
            more={
                "ms": times.ms(f"{n} {way}"),
                "tokens_per_second": 1e3 * n * TOKENS / times.ms(f"{n} {way}"),
                "forwards": forwards[f"{n} {way}"],
            },
        )
        for way in ("invoke", "ainvoke")
        for n in CALLS[1:]
    ]
    rows.append(
        Row(
            "forwards of 16 invoke / of 1",
            on,
            forwards["16 invoke"] / forwards["1 invoke"],
            unit="x",
            more={"forwards": forwards},
        )
    )
    rows.append(
        Row(
            "time of 8 invoke / of one batch of 8",
            on,
            times.ratio("8 invoke", "batch of 8"),
            None,
            "x",
        )
    )
    save("concurrency", rows)


def threads(llm: EnsembleLLM, prompts: list[str]) -> Any:
    """Calls of as many threads."""
    pool = ThreadPoolExecutor(len(prompts))
    return lambda: list(pool.map(llm.invoke, prompts))


def tasks(llm: EnsembleLLM, prompts: list[str]) -> Any:
    """Calls of as many tasks of one event loop."""

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(llm.ainvoke(prompt) for prompt in prompts))

    return lambda: asyncio.run(all_of_them())


def counted(llm: EnsembleLLM, way: Any) -> int:
    """Forwards that a way of calling runs, both members together."""
    pools = [member._lease.value.pool for member in llm.engine._ready().members]
    before = sum(pool.forwards for pool in pools)
    way()
    return sum(pool.forwards for pool in pools) - before


def inverse(times: Times, name: str, other: str) -> float:
    """Median over rounds of another function's time over one's."""
    pairs = zip(times.rounds[other], times.rounds[name], strict=True)
    return statistics.median(one / many for one, many in pairs)


if __name__ == "__main__":
    main()
