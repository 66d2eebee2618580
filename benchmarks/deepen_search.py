"""DeePEn's step over support and tail beside the dense search: time, and the same token.

* Time: 32,000 tokens, 24,000 anchors, one position, main and an auxiliary; the whole fused step of
  both, with supports of 50 and of 200 tokens, hot rows already computed. The dense step has one
  table of 3 GB for both members (they have the same embeddings).
* Certificate: what ``best`` costs where it fires.
* Same token: random logits (8,192 tokens, 6,000 anchors) whose supports hold about 20, 100 and 400
  tokens; and every step of answers by a pair trained for this (``trained_pair.py``), decoded with
  the dense search. Where the certificate says which token wins, both must say the same always.

``python benchmarks/deepen_search.py --pair DIR``: about two minutes on one thread and 5 GB of
memory; the pair is trained first (five minutes more) where DIR does not hold it yet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from common import RESULTS, Row, interleaved, one_thread, peak_gib, save
from relative_memory import Pair, alignment_of
from torch import Tensor
from trained_pair import make, prompts

from langchain_ensemble.fusion import Deepen
from langchain_ensemble.fusion.base import (
    Alignment,
    FusedDistribution,
    FusionContext,
    MemberDistribution,
    member_distribution,
)
from langchain_ensemble.fusion.deepen import relative_representation
from langchain_ensemble.fusion.deepen_fuser import DeepenFuser
from langchain_ensemble.fusion.rows import HotRows, StoredRows
from langchain_ensemble.fusion.search import UNKNOWN, certified
from langchain_ensemble.fusion.support import SearchSettings

SETTINGS = SearchSettings(steps=5, rate=0.15, support_mass=0.999, support_cap=512)
HALF = [0.5, 0.5]


def support_sized(logits: Tensor, size: int) -> Tensor:
    """Scale rows so that ``size`` tokens hold the support's mass.

    Args:
        logits: [N, V].
        size: Tokens of the support.

    Returns:
        [N, V].
    """
    low, high = torch.zeros(len(logits), 1), torch.full((len(logits), 1), 1e3)
    ranked = logits.sort(-1, descending=True).values
    for _ in range(60):
        middle = (low + high) / 2
        held = torch.softmax(ranked * middle, -1)[:, :size].sum(-1, keepdim=True)
        low = torch.where(held < SETTINGS.support_mass, middle, low)
        high = torch.where(held < SETTINGS.support_mass, high, middle)
    return logits * high


def alike(rows: int, width: int, alignment: Alignment, size: int, seed: int) -> list[Any]:
    """Two members that mostly agree; main's support has ``size`` tokens in every row."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, width, generator=generator)
    return [
        member_distribution(
            support_sized(0.8 * common + 0.6 * torch.randn(rows, width, generator=generator), size),
            keys,
        )
        for keys in alignment.members
    ]


def times(width: int, anchors: int, rounds: int) -> list[Row]:
    """Time the dense step, ours and ``best``.

    Args:
        width: Tokens of each member.
        anchors: The first so many.
        rounds: Of timing.

    Returns:
        Rows with the bars.
    """
    alignment = alignment_of(Pair(("main", "other"), (width, width), anchors, 64))
    embeddings = torch.randn(width, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(anchors)
    table = relative_representation(embeddings, ids)
    mean = table.mean(0)
    cpu = torch.device("cpu")
    dense = DeepenFuser(alignment, [StoredRows(table, mean, cpu)] * 2, True, SETTINGS)
    hot = [HotRows(embeddings, ids, mean, cpu, budget=10**9, least=SETTINGS.most) for _ in range(2)]
    ours = DeepenFuser(alignment, hot, False, SETTINGS)
    weights = torch.tensor([HALF])
    rows = []
    for size, bar in ((50, 200.0), (200, 60.0)):
        said = alike(1, width, alignment, size, seed=size)
        taken = interleaved(
            {"dense": lambda s=said: dense(s, weights), "ours": lambda s=said: ours(s, weights)},
            rounds,
        )
        same = bool(
            (dense(said, weights).logprobs.argmax() == ours(said, weights).logprobs.argmax()).all()
        )
        rows.append(
            Row(
                "DeePEn: dense step / ours",
                f"V = {width}, A = {anchors}, {size} support rows, rows cached",
                taken.ratio("dense", "ours"),
                bar,
                "x",
                least=True,
                more={"dense_ms": taken.ms("dense"), "ours_ms": taken.ms("ours"), "same": same},
            )
        )
    sure = [_ahead(one) for one in said]
    found = certified(sure[0].logprobs, torch.zeros(1), SETTINGS.steps, SETTINGS.rate)
    assert bool((found != UNKNOWN).all())
    taken = interleaved(
        {"call": lambda: ours(sure, weights), "best": lambda: ours.best(sure, weights)}, 5 * rounds
    )
    rows.append(
        Row(
            "DeePEn: a step / its best key alone",
            "the same, certified",
            taken.ratio("call", "best"),
            unit="x",
            more={"call_ms": taken.ms("call"), "best_ms": taken.ms("best")},
        )
    )
    return rows


def _ahead(one: MemberDistribution) -> MemberDistribution:
    """The best token three nats further ahead."""
    best = one.logprobs.argmax(-1, keepdim=True)
    moved = one.logprobs.scatter_add(-1, best, torch.full_like(best, 3.0, dtype=torch.float32))
    total = torch.logaddexp(moved.logsumexp(-1), one.end)
    return replace(one, logprobs=moved - total[:, None], end=one.end - total)


@dataclass
class Tally:
    """Steps in which the two searches were compared.

    Attributes:
        steps: All.
        same: With the same best entry.
        certain: Decided by the certificate.
        certain_same: Of those, decided as both searches did.
        best_same: ``best`` gave the pruned search's best entry.
        moved: In which the fusion's best entry is not main's.
        apart: Largest total variation of a fused row.
    """

    steps: int = 0
    same: int = 0
    certain: int = 0
    certain_same: int = 0
    best_same: int = 0
    moved: int = 0
    apart: float = 0.0

    def add(
        self,
        dense: DeepenFuser,
        ours: DeepenFuser,
        said: Sequence[MemberDistribution | None],
        weights: Tensor,
    ) -> FusedDistribution:
        """Compare one batch; the dense answer."""
        whole, part, best = dense(said, weights), ours(said, weights), ours.best(said, weights)
        full, short, sole = (
            torch.cat([f.logprobs, f.end[:, None]], -1) for f in (whole, part, best)
        )
        main = said[0]
        assert main is not None
        alone = torch.cat([main.logprobs, main.end[:, None]], -1)
        known = certified(main.logprobs, whole.end.exp(), SETTINGS.steps, SETTINGS.rate)
        sure = known != UNKNOWN
        wanted = torch.where(known >= 0, known, full.shape[-1] - 1)  # END is the last column
        won = full.argmax(-1)
        self.steps += len(won)
        self.same += int((won == short.argmax(-1)).sum())
        self.best_same += int((sole.argmax(-1) == short.argmax(-1)).sum())
        self.certain += int(sure.sum())
        self.certain_same += int((sure & (wanted == won) & (wanted == short.argmax(-1))).sum())
        self.moved += int((won != alone.argmax(-1)).sum())
        self.apart = max(self.apart, float((full.exp() - short.exp()).abs().sum(-1).max() / 2))
        return whole

    def rows(self, on: str) -> list[Row]:
        """The figures with their bars."""
        told = {"steps": self.steps, "moved": self.moved, "largest_tv": round(self.apart, 5)}
        return [
            Row(
                "DeePEn: same token as the dense search",
                on,
                100 * self.same / self.steps,
                99.5,
                "%",
                least=True,
                more=told,
            ),
            Row(
                "DeePEn: same token where certified",
                on,
                100 * self.certain_same / max(1, self.certain)
                if self.certain
                else "none certified",
                100.0 if self.certain else None,
                "%",
                least=True,
                more={"certified": self.certain, "steps": self.steps},
            ),
            Row(
                "DeePEn: best key alone is the step's",
                on,
                100 * self.best_same / self.steps,
                100.0,
                "%",
                least=True,
            ),
        ]


def random_logits(width: int, anchors: int, positions: int) -> list[Row]:
    """Compare on random logits of three sharpnesses."""
    pair = Pair(("main", "other"), (width, width + 500), anchors, 128)
    alignment = alignment_of(pair)
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(anchors, 128, generator=generator)
    embeddings = []
    for size in pair.widths:
        turn = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
        own = torch.randn(size, 128, generator=generator)
        own[:anchors] = shared @ turn + 0.5 * own[:anchors]
        embeddings.append(own)
    context = FusionContext(alignment, lambda i: embeddings[i], str)
    dense, ours = (Deepen(dense=one).prepare(context) for one in (True, False))
    weights = torch.tensor([HALF])
    rows = []
    for size in (20, 100, 400):
        tally = Tally()
        for batch in range(positions // 32):
            generator = torch.Generator().manual_seed(1000 * size + batch)
            common = torch.randn(32, anchors, generator=generator)
            said = []
            for keys in alignment.members:
                logits = torch.randn(32, keys.width, generator=generator)
                logits[:, :anchors] = 0.8 * common + 0.6 * logits[:, :anchors]
                said.append(member_distribution(support_sized(logits, size), keys))
            tally.add(dense, ours, said, weights.expand(32, -1))
        rows += tally.rows(f"random logits, V = {width}, supports of {size}")
    return rows


@dataclass
class _Both:
    """A fusion that decodes with the dense search and compares ours in every step."""

    tally: Tally = field(default_factory=Tally)
    name: ClassVar[str] = "dense beside pruned"

    @property
    def needs(self) -> Any:
        return Deepen().needs

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, context: FusionContext) -> _BothFuser:
        return _BothFuser(
            Deepen(dense=True).prepare(context), Deepen(dense=False).prepare(context), self.tally
        )


@dataclass
class _BothFuser:
    dense: DeepenFuser
    ours: DeepenFuser
    tally: Tally

    def __call__(
        self, distributions: Sequence[MemberDistribution | None], weights: Tensor
    ) -> FusedDistribution:
        return self.tally.add(self.dense, self.ours, distributions, weights)

    def score(self, *given: Any) -> Tensor:
        return self.dense.score(*given)


def trained(folder: Path, answers: int, tokens: int) -> list[Row]:
    """Compare in every step of answers by a trained pair."""
    from langchain_ensemble import EnsembleLLM

    first, second = make(folder)
    rows = []
    for names in ((first, second), (second, first)):
        fusion = _Both()
        llm = EnsembleLLM(
            members={place.name: str(place) for place in names},
            fusion=fusion,
            max_tokens=tokens,
            temperature=0.0,
        )
        texts = llm.batch(prompts(answers))
        print(f"  {names[0].name}: {texts[0]!r}", flush=True)
        rows += fusion.tally.rows(f"trained pair, main {names[0].name}")
    return rows


def main() -> None:
    """Measure, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder of the trained pair")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=256, help="random rows a sharpness")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--only", choices=("times", "random", "trained"), action="append")
    given = parser.parse_args()
    one_thread()
    parts = given.only or ["times", "random", "trained"]
    rows: list[Row] = []
    if "times" in parts:
        rows += times(32_000, 24_000, given.rounds)
        rows.append(Row("DeePEn: peak memory of this benchmark", "CPU", peak_gib(), 6.0, "GiB"))
    if "random" in parts:
        rows += random_logits(8192, 6000, given.positions)
    if "trained" in parts:
        with tempfile.TemporaryDirectory() as spare:
            rows += trained(given.pair or Path(spare), given.answers, given.tokens)
    save("deepen_search", rows + kept(rows))


def kept(rows: Sequence[Row]) -> list[Row]:
    """Rows of the last result file that were not measured again."""
    path = RESULTS / "deepen_search.json"
    if not path.exists():
        return []
    new = {(row.measure, row.on) for row in rows}
    old = [
        Row(
            *(plain[name] for name in ("measure", "on", "measured", "bar", "unit")),
            least=plain["rule"] == ">=",
            more=plain.get("more", {}),
        )
        for plain in json.loads(path.read_text())["rows"]
    ]
    return [row for row in old if (row.measure, row.on) not in new]


if __name__ == "__main__":
    main()
