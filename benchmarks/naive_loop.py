"""Our loop beside the loop that anybody writes first: two transformers models, one mean, argmax.

The naive loop runs two models of equal vocabularies with a ``DynamicCache`` each, eager, and takes
the best of the mean of their log-softmaxes. Ours is an ensemble of the same two models with
``fusion="average"`` (geometric) and no drafts. Both decode the same prompt greedily, and the tokens
are asserted to be the same. Members are 256 x 4 with 32k vocabularies, random weights, one thread.
Ours is measured eager, as theirs is, and with ``forward="compiled"``.

Run from the repository's root: ``python benchmarks/naive_loop.py``. Results go to
``benchmarks/results/naive_loop.json``.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import Row, clock_of, interleaved, one_thread, save
from toys import ensemble_of, llama, opened, vocabulary
from transformers import DynamicCache

WIDTH, LAYERS, VOCABULARY = 256, 4, 32_000


class Naive:
    """Two cached forwards and one mean a token."""

    def __init__(self, models: list[Any], prompts: list[list[list[int]]]) -> None:
        self._models = models
        self._caches = [DynamicCache(config=model.config) for model in models]
        self._logits: list[Any] = []
        self.tokens: list[list[int]] = []
        for model, cache, ids in zip(models, self._caches, prompts, strict=True):
            for at in range(0, len(ids[0]), 512):
                block = torch.tensor([row[at : at + 512] for row in ids])
                logits = self._run(model, cache, block)
            self._logits.append(logits)

    @torch.inference_mode()
    def _run(self, model: Any, cache: Any, block: Any) -> Any:
        out = model(block, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one token."""
        mean = sum(torch.log_softmax(row.float(), -1) for row in self._logits) / 2
        mean[:, 0] = -torch.inf  # END
        chosen = mean.argmax(-1)
        self.tokens.append(chosen.tolist())
        self._logits = [
            self._run(model, cache, chosen[:, None])
            for model, cache in zip(self._models, self._caches, strict=True)
        ]


def prompts_of(owner: Any, context: int, rows: int) -> list[list[list[int]]]:
    """[member][row] the ids that :func:`toys.opened` gives for a size."""
    with opened(owner, context, rows, max_tokens=1) as decoding:
        prompts = decoding._task.prompts
    return [[list(row[member].ids) for row in prompts] for member in range(2)]


def compared(
    owner: Any, models: list[Any], size: tuple[int, int], rounds: int, steps: int, how: str = ""
) -> Row:
    """One size: the median of interleaved rounds of our time over the naive loop's."""
    context, rows = size
    naive = Naive(models, prompts_of(owner, context, rows))
    tokens = rounds * steps + 2
    asked = {"max_tokens": tokens + 1, "speculation": "off", "weights": "uniform"}
    with opened(owner, context, rows, **asked) as decoding:
        while not decoding.rows[0].records:
            decoding.step()
        naive.step()
        work = {"ours": decoding.step, "naive": naive.step}
        times = interleaved(work, rounds, inner=steps, clock=clock_of("cpu"))
        records = [row.records for row in decoding.rows]
    ids = [[row[n].id for row in records] for n in range(len(naive.tokens))]
    if ids != naive.tokens:
        raise SystemExit(f"other tokens at {context} tokens, batch {rows}")
    bar = 0.5 if context >= 4096 else 1.1
    more = {"ours_ms": times.ms("ours"), "naive_ms": times.ms("naive"), "rounds": rounds}
    on = f"{WIDTH} x {LAYERS}, {context} tokens, batch {rows}{how}"
    return Row("our time / a naive loop's", on, times.ratio("ours", "naive"), bar, "x", more=more)


def main() -> None:
    """Measure both sizes, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    one_thread()
    models = [llama(VOCABULARY, WIDTH, LAYERS, seed=seed) for seed in (1, 2)]
    for model in models:
        with torch.no_grad():
            model.lm_head.weight[:257] = 0.0  # no halves of characters
    words = vocabulary(VOCABULARY)
    members = {name: (model, words) for name, model in zip("ab", models, strict=True)}
    owner, compiled = (
        ensemble_of(
            members, {"name": "average", "mean": "geometric"}, forward=forward, prefix_cache_gb=0
        )
        for forward in (None, "compiled")
    )
    rows = [
        compared(owner, models, (64, 1), given.rounds, 8),
        compared(compiled, models, (64, 1), given.rounds, 8, ", compiled"),
        compared(owner, models, (4096, 8), max(given.rounds // 2, 1), 2),
    ]
    save("naive_loop", rows)


if __name__ == "__main__":
    main()
