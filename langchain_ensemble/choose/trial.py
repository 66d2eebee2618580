"""The runs of one choice: candidates alone, samples, votes, ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_ensemble.chat_models import ChatEnsemble
from langchain_ensemble.choose import compare
from langchain_ensemble.choose.asking import Answers, Model, Progress, Reply, as_model, ask, warn
from langchain_ensemble.choose.candidates import measure
from langchain_ensemble.choose.compare import System
from langchain_ensemble.choose.devset import Item
from langchain_ensemble.choose.sizes import Size, joint_memory
from langchain_ensemble.errors import ConfigError, EnsembleError, MemberError
from langchain_ensemble.llms import EnsembleLLM
from langchain_ensemble.params import Member

SAMPLES = 5
"""Samples for the consistency that confidences are compared with."""

TEMPERATURE = 0.7
"""Of samples that vote, as in the self-consistency paper."""

SAMPLED, VOTED = "samples of the best member, vote", "answers of the members, vote"
"""What these systems are called."""

Replies = Sequence[Sequence[Reply]]


@dataclass
class Alone:
    """The candidates that could be measured, and why the others could not. By name."""

    sizes: dict[str, Size] = field(default_factory=dict)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    systems: dict[str, System] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Together:
    """What was measured over the members.

    Attributes:
        ensembles: By name.
        replies: Of the ensembles, by name.
        beside: :data:`SAMPLED` and :data:`VOTED`.
        skipped: Ensembles that could not be measured, and why.
        samples: How many samples of the best member cost as much as one answer of all members.
        sampled: Who was sampled for the consistency of main, and ``[question][n]`` samples.
        main: The ensemble's main member.
    """

    ensembles: dict[str, System] = field(default_factory=dict)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    beside: dict[str, System] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    sampled: tuple[str, Replies] | None = None
    main: str = ""


@dataclass(frozen=True)
class Trial:
    """What all runs of one choice share.

    Attributes:
        items: The questions.
        chat: Whether members read them in their chat templates.
        candidates: By name.
        settings: Fields of the LangChain class, for all alike.
        seed: Of samples.
        answers: What is known already.
        progress: Called with (stage, done, total).
        stamps: The state of the weights of candidates that were measured, by name.
    """

    items: tuple[Item, ...]
    chat: bool
    candidates: Mapping[str, Member]
    settings: Mapping[str, Any]
    seed: int
    answers: Answers
    progress: Progress
    stamps: dict[str, str] = field(default_factory=dict)

    def model(self, names: Sequence[str], **more: Any) -> Model:
        """Make the LangChain object of some candidates; nothing is loaded."""
        settings = dict(self.settings)
        if len(names) == 1:
            settings.pop("weights", None)
        if settings.get("contexts"):
            settings["contexts"] = {k: v for k, v in settings["contexts"].items() if k in names}
        members = {name: self.candidates[name] for name in names}
        return as_model(self.chat, {**settings, **more, "members": members})

    def plans(
        self,
        fusions: Sequence[str | Mapping[str, Any]] | None,
        gates: Sequence[str | Mapping[str, Any]] | None,
    ) -> list[dict[str, Any]]:
        """Every fusion with every gate, as settings.

        Raises:
            ConfigError: One of them, or of the common settings, is wrong; nothing was loaded yet.
        """
        fields = (ChatEnsemble if self.chat else EnsembleLLM).model_fields
        found: list[dict[str, Any]] = []
        for fusion in _several("fusions", fusions, fields["fusion"].default):
            if not isinstance(fusion, str | Mapping):
                raise ConfigError(
                    f"fusions holds an object of {type(fusion).__qualname__}, which the suggestion "
                    "could not hold; give a name, or a mapping of a name and settings"
                )
            for gate in _several("gates", gates, fields["gate"].default):
                found.append({"fusion": fusion, "gate": gate})
        for plan in found:
            self.model(tuple(self.candidates), **plan)
        return found

    # --- candidates ----------------------------------------------------------------------------

    def alone(self, budget: int | None, main: str | None) -> Alone:
        """Measure every candidate alone, one after another.

        Args:
            budget: Bytes that one may need; None: no limit.
            main: Who must not be missing.

        Raises:
            MemberError: None could be measured, or ``main`` could not.
            ConfigError: The metric failed.
        """
        found = Alone()
        for name in self.candidates:
            try:
                size, replies = self._measure(name, budget)
            except EnsembleError as error:
                found.left_out[name] = str(error)
                warn(f"candidate {name!r} is left out: {error}")
                continue
            found.sizes[name], found.replies[name] = size, replies
            found.systems[name] = self._system(name, "candidate", (name,), replies, size.memory)
        if not found.systems or main in found.left_out:
            told = "; ".join(f"{name}: {why}" for name, why in found.left_out.items())
            who = "no candidate" if not found.systems else f"main={main!r}"
            raise MemberError(f"{who} can be measured: {told}")
        self.warn_of_templates(found)
        return found

    def warn_of_templates(self, found: Alone) -> None:
        """Warn of instruct models that would read raw prompts."""
        both = {member.model for member in EnsembleLLM.demo().params.members}  # learned raw text
        names = [
            repr(name)
            for name, size in found.sizes.items()
            if size.template and self.candidates[name].model not in both
        ]
        if names and not self.chat:
            warn(
                f"candidates {', '.join(names)} have a chat template, and the prompts go past it: "
                "an instruct model may ramble or never end. chat=True (--chat), or messages in the "
                "dev set, let each read its own template"
            )

    def _measure(self, name: str, budget: int | None) -> tuple[Size, list[Reply]]:
        model = self.model([name])
        (member,) = model.params.members
        size = measure(member, self.items, model.max_tokens)
        if budget is not None and (size.memory is None or size.memory > budget):
            needs = "is not known" if size.memory is None else f"is {size.memory / 1e9:.2f} GB"
            raise MemberError(f"its memory {needs}, vram is {budget / 1e9:.2f} GB")
        self.stamps[name] = size.stamp
        return size, [one for (one, *_) in self._ask(model, name)]

    def _system(
        self,
        name: str,
        kind: compare.SystemKind,
        members: Sequence[str],
        replies: Sequence[Reply],
        memory: int | None,
        **more: Any,
    ) -> System:
        texts = tuple(reply.text for reply in replies)
        right = tuple(item.right(text) for item, text in zip(self.items, texts, strict=True))
        if kind in ("candidate", "ensemble"):
            more["seconds"] = sum(reply.seconds for reply in replies) / len(replies)
        return System(name, kind, tuple(members), texts, right, memory, **more)

    # --- together ------------------------------------------------------------------------------

    def together(
        self,
        members: Sequence[str],
        plans: Sequence[Mapping[str, Any]],
        alone: Alone,
    ) -> Together:
        """Measure what some candidates do together, and the best of them with as much work.

        Args:
            members: Their names, main first; one: there is nothing to measure.
            plans: Settings of the ensembles.
            alone: The candidates' own answers.
        """
        found = Together(main=members[0])
        if len(members) < 2:
            found.skipped["ensemble"] = "no other candidate fits beside " + members[0]
            return found
        memory = joint_memory([alone.sizes[name] for name in members])
        self._vote(members, alone, memory, found)
        self._sample(members, alone, found)
        for plan in plans:
            name = f"{named(plan['fusion'])}({'+'.join(members)}){_gated(plan['gate'])}"
            try:
                rows = self._ask(self.model(members, main=found.main, **plan), name)
            except EnsembleError as error:
                found.skipped[name] = str(error)
                warn(f"{name} is left out: {error}")
                continue
            replies = found.replies[name] = [one for (one, *_) in rows]
            fused = sum(reply.features["share_fused"] * reply.steps for reply in replies)
            share = fused / max(1, sum(reply.steps for reply in replies))
            found.ensembles[name] = self._system(
                name, "ensemble", members, replies, memory, fused=share, settings=dict(plan)
            )
        return found

    def _vote(
        self, members: Sequence[str], alone: Alone, memory: int | None, found: Together
    ) -> None:
        """Let the members' own answers vote; ties go to the best member's."""
        ordered = sorted(members, key=lambda name: -alone.systems[name].accuracy)
        rows = zip(*(alone.replies[name] for name in ordered), strict=True)
        replies = [compare.vote(item, row) for item, row in zip(self.items, rows, strict=True)]
        found.beside[VOTED] = self._system(VOTED, "vote", members, replies, memory)

    def _sample(self, members: Sequence[str], alone: Alone, found: Together) -> None:
        """Let samples of the best member vote: as many as cost what all members cost."""
        best = max(members, key=lambda name: alone.systems[name].accuracy)
        costs = {name: alone.sizes[name].parameters for name in members}
        found.samples = max(2, round(sum(costs.values()) / max(1, costs[best])))
        try:
            rows = self._samples(best, max(SAMPLES, found.samples))
            own = rows if found.main == best else self._samples(found.main, SAMPLES)
        except EnsembleError as error:
            found.skipped[SAMPLED] = str(error)
            warn(f"{SAMPLED}: left out: {error}")
            return
        replies = [
            compare.vote(item, row[: found.samples], likeliest=True)
            for item, row in zip(self.items, rows, strict=True)
        ]
        settings = {"n": found.samples, "temperature": TEMPERATURE, "seed": self.seed}
        found.beside[SAMPLED] = self._system(
            SAMPLED,
            "self-consistency",
            (best,),
            replies,
            alone.systems[best].memory,
            settings=settings,
        )
        found.sampled = found.main, [row[:SAMPLES] for row in own]

    def _samples(self, name: str, count: int) -> Replies:
        model = self.model([name], n=count, temperature=TEMPERATURE, seed=self.seed)
        return self._ask(model, f"{name}, {count} samples")

    def _ask(self, model: Model, stage: str) -> list[list[Reply]]:
        stamps = [self.stamps[name] for name in model.params.names]
        return ask(model, self.items, self.answers, stage, self.progress, stamps)

    def config(self, system: System) -> dict[str, Any]:
        """Settings that ``from_config`` reads and that answer as a system did."""
        more = {**system.settings, "main": system.members[0], "logprobs": False}
        return self.model(system.members, **more).to_config()


def _several(name: str, given: Sequence[Any] | None, default: Any) -> Sequence[Any]:
    """What was given, or the default alone.

    Raises:
        ConfigError: One in place of several, or none at all.
    """
    if given is None:
        return [default]
    if isinstance(given, str | Mapping) or not given:
        raise ConfigError(
            f"{name} is {given!r}; give a list with at least one, or leave it out for the "
            f"package's own, [{default!r}]"
        )
    return given


def named(setting: str | Mapping[str, Any]) -> str:
    """How a fusion or a gate shows in a name: with the settings that it was given."""
    if isinstance(setting, str):
        return setting
    given = [f"{key}={value}" for key, value in setting.items() if key != "name"]
    return " ".join([str(setting["name"]), *given])


def _gated(gate: str | Mapping[str, Any]) -> str:
    return "" if named(gate) == "always" else f", gate {named(gate)}"
