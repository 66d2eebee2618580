"""Beside transformers' assisted generation with ``assistant_ensemble_weight``: speed, exactness.

The two shared models have one tokenizer, so both ways can run: theirs verifies drafts of one model
against ``w p + (1 - w) q`` (greedy: its argmax); ours is ``fusion="average"`` with the arithmetic
mean, the same rule. Measured: tokens per second, in rounds that alternate; how many forwards of
each model a token took; how many drafted tokens were accepted; and how many tokens are not the
argmax of the mean when both models are run over the whole answer again (theirs takes the token
after a fully accepted draft, and the last token, from the target alone).

Theirs is measured with several draft lengths, and the fastest one counts. Ours is measured eager
and with ``forward="compiled"``, which theirs cannot be: it refuses static caches.

Run from the repository's root: ``python benchmarks/assisted.py`` (two minutes on one CPU
thread; reads the shared data). Results go to ``benchmarks/results/assisted.json``.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import SHARED, Row, interleaved, one_thread, save
from toys import drafts_of, ensemble_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from langchain_ensemble.ensemble import Ensemble
from langchain_ensemble.params import RequestParams

PROMPTS = (
    "Once upon a time there was a little girl",
    "One day, a boy named Tim went to the park",
    "Lily and her mom",
)
WEIGHT = 0.5
DRAFTS: tuple[int | None, ...] = (None, 3, 5)
"""Draft lengths of theirs; None: its defaults (20, cut where the draft model is unsure)."""


@dataclass
class Counts:
    """What one run took.

    Attributes:
        forwards: Model's name to its forwards.
        drafted: Tokens that were drafted.
        accepted: Drafted tokens that were taken.
    """

    forwards: Counter[str] = field(default_factory=Counter)
    drafted: int = 0
    accepted: int = 0


@contextmanager
def counted(models: dict[str, Any]) -> Iterator[Counts]:
    """Count forwards of models, and drafts of transformers' own candidate generator."""
    counts = Counts()
    hooks = [
        model.register_forward_hook(lambda *_, name=name: counts.forwards.update([name]))
        for name, model in models.items()
    ]
    propose = AssistedCandidateGenerator.get_candidates
    settle = AssistedCandidateGenerator.update_candidate_strategy

    def get_candidates(self: Any, input_ids: Any, **more: Any) -> Any:
        ids, logits = propose(self, input_ids, **more)
        counts.drafted += ids.shape[1] - input_ids.shape[1]
        return ids, logits

    def update(self: Any, input_ids: Any, scores: Any, num_matches: int) -> None:
        counts.accepted += int(num_matches)
        settle(self, input_ids, scores, num_matches)

    AssistedCandidateGenerator.get_candidates = get_candidates
    AssistedCandidateGenerator.update_candidate_strategy = update
    try:
        yield counts
    finally:
        AssistedCandidateGenerator.get_candidates = propose
        AssistedCandidateGenerator.update_candidate_strategy = settle
        for hook in hooks:
            hook.remove()


class Pair:
    """Two models of one tokenizer; the first is the target, or main."""

    def __init__(self, names: tuple[str, str], shared: Path, tokens: int) -> None:
        """Read the models."""
        self.names, self.tokens = names, tokens
        folders = {name: shared / "models" / name for name in names}
        self.models = {
            n: AutoModelForCausalLM.from_pretrained(f).eval() for n, f in folders.items()
        }
        self.tokenizer = AutoTokenizer.from_pretrained(folders[names[0]])
        self.ensembles: dict[str, Ensemble] = {
            forward: ensemble_of(
                {n: (m, AutoTokenizer.from_pretrained(folders[n])) for n, m in self.models.items()},
                fusion={"name": "average", "mean": "arithmetic"},
                forward=forward,
                prefix_cache_gb=0,  # every answer reads its prompt, as theirs does
            )
            for forward in ("eager", "compiled")
        }

    @torch.inference_mode()
    def theirs(self, prompt: str, draft: int | None) -> list[int]:
        """Ids of their answer."""
        target, assistant = (self.models[name] for name in self.names)
        assistant.generation_config.num_assistant_tokens = draft or 20
        assistant.generation_config.assistant_confidence_threshold = 0.4 if draft is None else 0.0
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        made = target.generate(
            ids,
            assistant_model=assistant,
            assistant_ensemble_weight=WEIGHT,
            do_sample=False,
            max_new_tokens=self.tokens,
            pad_token_id=2,
        )
        return list(made[0, ids.shape[1] :].tolist())

    def ours(
        self, prompt: str, speculation: str, counts: Counts | None = None, forward: str = "eager"
    ) -> list[int]:
        """Main's ids of our answer; what was drafted is added to ``counts``."""
        request = RequestParams(max_tokens=self.tokens, speculation=speculation, weights="uniform")
        with self.ensembles[forward].open([prompt], request) as decoding:
            while not decoding.done:
                decoding.step()
            if counts is not None:
                drafted, accepted = drafts_of(decoding)
                counts.drafted, counts.accepted = (
                    counts.drafted + drafted,
                    counts.accepted + accepted,
                )
            return [record.id for record in decoding.rows[0].records]

    @torch.inference_mode()
    def not_the_mean(self, prompt: str, answer: list[int]) -> int:
        """How many tokens of an answer are not the argmax of the mean after what precedes them."""
        start = self.tokenizer(prompt).input_ids
        ids = torch.tensor([start + answer])
        mean = sum(torch.softmax(m(ids).logits[0], -1) / 2 for m in self.models.values())
        here = mean[len(start) - 1 : -1]
        taken = here.gather(1, torch.tensor(answer)[:, None])[:, 0]
        return int((taken < here.amax(1) - 1e-6).sum())


def measure(pair: Pair, rounds: int, *, judged: bool) -> list[Row]:
    """Time both ways over all prompts and check what they said."""
    names = " <- ".join(pair.names)
    ways = {f"theirs {d or 'default'}": (lambda p, d=d: pair.theirs(p, d)) for d in DRAFTS}
    ways |= {f"ours {s}": (lambda p, s=s: pair.ours(p, s)) for s in ("on", "off")}
    ways["ours compiled"] = lambda p: pair.ours(p, "on", forward="compiled")
    said = {way: [run(p) for p in PROMPTS] for way, run in ways.items()}
    wrong = {
        way: sum(pair.not_the_mean(p, a) for p, a in zip(PROMPTS, answers, strict=True))
        for way, answers in said.items()
    }
    size = {way: sum(map(len, answers)) for way, answers in said.items()}
    times = interleaved(
        {way: (lambda run=run: [run(p) for p in PROMPTS]) for way, run in ways.items()}, rounds
    )
    speed = {way: size[way] / times.ms(way) * 1e3 for way in ways}
    best = max((way for way in ways if way.startswith("theirs")), key=speed.__getitem__)
    more = {"theirs": best, "per second": {w: round(v) for w, v in speed.items()}}
    rows = [
        Row(
            f"tokens per second, ours{how} / assisted generation's", names,
            times.ratio(best, way) * size[way] / size[best],
            1.2 if judged else None, "x", least=True, more=more,
        )
        for way, how in (("ours on", ""), ("ours compiled", " compiled"))
    ]  # fmt: skip
    rows += [
        Row(
            f"tokens that differ between speculation {how} and off", names,
            sum(a != b for a, b in zip(said[way], said["ours off"], strict=True)), 0,
        )
        for way, how in (("ours on", "on"), ("ours compiled", "on, compiled,"))
    ]  # fmt: skip
    rows += [
        Row("ours: tokens that are not the argmax of the mean", names, wrong["ours on"], 0),
        Row(
            "theirs: tokens that are not the argmax of the mean", names, wrong[best],
            more={"of": size[best], "all": wrong},
        ),
    ]  # fmt: skip
    rows.append(
        Row("ours compiled: tokens per second", names, round(speed["ours compiled"], 1), unit="/s")
    )
    for way in (best, "ours on", "ours off"):
        with counted(pair.models) as counts:
            for prompt in PROMPTS:
                if way.startswith("ours"):
                    pair.ours(prompt, way.split()[1], counts)
                else:
                    ways[way](prompt)
        share = counts.accepted / counts.drafted if counts.drafted else math.nan
        acceptance = f"; acceptance {share:.2f}" if counts.drafted else ""
        forwards = ", ".join(f"{n} {counts.forwards[n] / size[way]:.2f}" for n in pair.names)
        rows.append(
            Row(
                f"{way}: tokens per second", f"{forwards} forwards a token{acceptance}",
                round(speed[way], 1), unit="/s",
                more={"forwards": dict(counts.forwards), "tokens": size[way]},
            )
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure both orders of the pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=120)
    given = parser.parse_args()
    one_thread()
    rows: list[Row] = []
    for names, judged in (
        (("bitllama-1M", "stories260K"), True),
        (("stories260K", "bitllama-1M"), False),
    ):
        pair = Pair(names, given.shared, given.tokens)
        rows += measure(pair, given.rounds, judged=judged)
    save("assisted", rows)


if __name__ == "__main__":
    main()
