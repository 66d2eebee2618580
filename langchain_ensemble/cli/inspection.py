"""A member without its weights, and its tokens as ``check`` compares and shows them.

Files, sizes and the card are known by ``members.inspection``; here are bytes, keys and roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langchain_ensemble.members.inspection import MemberInfo, inspect_member
from langchain_ensemble.params import Member
from langchain_ensemble.vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inspected:
    """One member, without weights.

    Attributes:
        info: What its files say.
        vocabulary: Its tokens.
        control: Spelling of control tokens by id.
        plain_ends: End ids that the tokenizer has as ordinary text, so that text would end; with
            their spelling.
    """

    info: MemberInfo
    vocabulary: Vocabulary
    control: Mapping[int, str]
    plain_ends: Mapping[int, str]

    @property
    def name(self) -> str:
        """Its name in the ensemble."""
        return self.info.name

    @property
    def spells_everything(self) -> bool:
        """Whether every character has a spelling, byte by byte if need be."""
        used = [b for b in range(0xF5) if b not in (0xC0, 0xC1)]
        return all(bytes([b]) in self.vocabulary.key_of for b in used)


def inspect(member: Member) -> Inspected:
    """Look at a member; on the Hub, fetch its small files only.

    Args:
        member: Settings, with a name.

    Raises:
        ConfigError: Its quantisation is unknown or its package is missing.
        MemberError: It cannot be found, or is no causal language model.
        VocabularyError: Its tokenizer cannot be turned into bytes, or is not the model's.
    """
    info = inspect_member(member)
    vocabulary = Vocabulary(
        info.tokenizer,
        width=info.logits_width,
        end_ids=info.end_ids,
        chat_template=info.template,
    )
    ids = [i for i, role in enumerate(vocabulary.token_roles) if role is not None]
    control = dict(zip(ids, info.tokenizer.convert_ids_to_tokens(ids), strict=True))
    added = info.tokenizer.added_tokens_decoder
    return Inspected(
        info=info,
        vocabulary=vocabulary,
        control=control,
        plain_ends={i: control[i] for i in vocabulary.end_ids if i not in added},
    )
