"""From loaded members to voices, an alignment and a prepared fusion: everything made once.

Main is first everywhere below. No request is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_ensemble.chat.view import ChatView
from langchain_ensemble.constraints.utf8 import REJECT, START, next_states, state_after
from langchain_ensemble.decoding.protocols import Voice, Warn
from langchain_ensemble.decoding.regions import Regions
from langchain_ensemble.errors import ConfigError
from langchain_ensemble.fusion import needs_of, prepare
from langchain_ensemble.fusion.base import Fuser, Fusion, FusionContext, MemberKeys, Trie
from langchain_ensemble.members.base import LoadedMember
from langchain_ensemble.members.graphs import capture_between
from langchain_ensemble.store import Store
from langchain_ensemble.vocab.alignment import Aligned, align, check_common
from langchain_ensemble.vocab.byte_trie import ByteTrie, tree_of
from langchain_ensemble.vocab.pair_table import pair_table
from langchain_ensemble.vocab.sorted_keys import SortedKeys
from langchain_ensemble.vocab.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Built:
    """Everything that exists once weights are loaded. Tuples have main first."""

    members: tuple[LoadedMember, ...]
    vocabularies: tuple[Vocabulary, ...]
    voices: tuple[Voice, ...]
    fuser: Fuser | None
    key_bytes: Sequence[bytes | None]
    draft: tuple[LoadedMember, Vocabulary] | None = None
    regions: Regions | None = None

    @property
    def names(self) -> list[str]:
        """The members' names, main first."""
        return [member.name for member in self.members]


def build(
    members: Sequence[LoadedMember],
    fusion: Fusion,
    open_boundaries: Literal["discount", "vote"],
    store: Store,
    on_progress: Progress | None,
) -> Built:
    """Read the tokenizers, align them and prepare the fusion.

    Args:
        members: Loaded, main first.
        fusion: The fusion.
        open_boundaries: Whether an auxiliary inside a token of its own votes with less weight.
        store: Where pair tables and the fusion's tables are remembered.
        on_progress: Called with (stage, done, total) in long loops.

    Returns:
        What requests need.

    Raises:
        ConfigError: The fusion needs more than a member gives.
        VocabularyError: The members share too few tokens for the fusion.
    """
    vocabularies = tuple(
        Vocabulary(
            m.tokenizer, width=m.logits_width, end_ids=m.end_ids, chat_template=m.chat_template
        )
        for m in members
    )
    if len(members) == 1:
        voice = Voice(members[0], vocabularies[0], None, None, None, None, verbatim=True)
        return Built(tuple(members), vocabularies, (voice,), None, ())
    _check_needs(members, fusion)
    device = members[0].device
    named = [(m.name, v) for m, v in zip(members, vocabularies, strict=True)]
    aligned = align(named, device=device)
    check_common(aligned, fusion.needs.min_common, fusion.name)
    paths = needs_of(fusion, aligned.alignment).paths
    discount = open_boundaries == "discount"
    voices = tuple(
        _voice(m, keys, (v, vocabularies[0]), aligned, store, discount=discount, paths=paths)
        for m, v, keys in zip(members, vocabularies, aligned.alignment.members, strict=True)
    )
    context = FusionContext(
        alignment=aligned.alignment,
        embeddings=lambda i: members[i].embeddings(),
        embedding_hashes=lambda i: members[i].weights_hash,
        device=device,
        devices=[m.device for m in members],
        remember=store.remember,
        on_progress=on_progress,
        tries=[v.trie.trie for v in voices if v.trie is not None] or None,
        union_trie=_held_by_main(aligned, store) if paths else None,
    )
    fuser = prepare(fusion, context)
    forwards = [(getattr(m, "forward", "eager"), m.device) for m in members]
    capture = capture_between(forwards)
    regions = None if capture is None else Regions(capture)
    return Built(tuple(members), vocabularies, voices, fuser, aligned.key_bytes, regions=regions)


def _held_by_main(aligned: Aligned, store: Store) -> Trie:
    """The tree of union keys that main can hold: its own, and whole characters."""
    width = aligned.alignment.main.width
    return tree_of(
        [
            key if key and (u < width or state_after(key) == START) else None
            for u, key in enumerate(aligned.key_bytes)
        ],
        store.remember,
    )


def small_model(member: LoadedMember) -> tuple[LoadedMember, Vocabulary]:
    """A loaded draft model and its vocabulary, which need nothing in common with the others'.

    Args:
        member: The draft model.
    """
    ends = member.end_ids
    return member, Vocabulary(member.tokenizer, width=member.logits_width, end_ids=ends)


def view_of(member: LoadedMember, vocabulary: Vocabulary, warn: Warn) -> ChatView:
    """How a loaded member reads conversations.

    Args:
        member: The member.
        vocabulary: Its vocabulary.
        warn: Called with a sentence when something is worth knowing.

    Returns:
        Its view.
    """
    return ChatView(
        member.name,
        member.tokenizer,
        vocabulary,
        chat_template=member.chat_template,
        system=member.system,
        context=member.context,
        warn=warn,
    )


def _check_needs(members: Sequence[LoadedMember], fusion: Fusion) -> None:
    for member in members:
        if fusion.needs.logprobs == "dense" and member.gives != "dense":
            raise ConfigError(
                f"fusion={fusion.name!r} needs every logit of every member; member "
                f"{member.name!r} gives only its best ones. Use fusion='unite'"
            )


def _voice(
    member: LoadedMember,
    keys: MemberKeys,
    vocabularies: tuple[Vocabulary, Vocabulary],
    aligned: Aligned,
    store: Store,
    *,
    discount: bool,
    paths: bool,
) -> Voice:
    """One member as the loop sees it.

    Where the fusion follows ``paths``, each voice holds the answer in its own ids, main too, and is
    heard byte by byte. Then nobody is asked to say only what main can hold: a step ends where main
    can. Nor are open boundaries weighed: the paths say what they would.
    """
    vocabulary, main = vocabularies
    verbatim = not paths and vocabulary.content_hash == main.content_hash
    states = next_states(vocabulary.token_bytes).to(member.device)  # [8, V_i]
    allowed = states != REJECT
    ends = keys.end_ids.to(member.device)
    allowed[START, ends] = True
    allowed[1:, ends] = False  # no END inside a character
    if not verbatim and not paths:  # what main lacks it can only hold if it is whole characters
        foreign = keys.to_union.to(member.device) >= main.width
        allowed[START] &= ~foreign | (states[START] == START)
    tree = ByteTrie(vocabulary, member.device, store.remember) if paths else None
    weighed = SortedKeys(vocabulary) if discount and not paths and not verbatim else None
    return Voice(
        member=member,
        vocabulary=vocabulary,
        keys=keys.to(member.device),
        allowed=allowed,
        sorted_keys=weighed if tree is None else tree,
        pairs=None if verbatim else pair_table(aligned, vocabulary, store.remember),
        verbatim=verbatim,
        trie=tree,
    )
