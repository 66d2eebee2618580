"""Small alignments made from lists of byte strings, without a tokenizer.

The same rules as the real ones: union keys are main's ids, then what main lacks in byte order; ids
with equal bytes are one key, and the first of them stands for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from langchain_ensemble.fusion.base import Alignment, MemberKeys


def toy_alignment(
    vocabularies: Sequence[Sequence[bytes | None]],
    end_ids: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] | None = None,
) -> Alignment:
    """Align vocabularies given as the bytes of each id.

    Args:
        vocabularies: One a member, main first; None: a control or unused id.
        end_ids: Ids that end the turn, one list a member; their entry should be None. Default: each
            member's last id where its entry is None, else no end.
        names: Members' names.

    Returns:
        The alignment.
    """
    main = vocabularies[0]
    first: list[dict[bytes, int]] = [_first_ids(v) for v in vocabularies]
    missing = sorted({key for table in first[1:] for key in table} - set(first[0]))
    union: dict[bytes, int] = dict(first[0])
    union.update({key: len(main) + place for place, key in enumerate(missing)})
    size = len(main) + len(missing)
    members = []
    for i, vocabulary in enumerate(vocabularies):
        ends = [len(vocabulary) - 1] if vocabulary[-1] is None else []
        if end_ids is not None:
            ends = list(end_ids[i])
        name = names[i] if names is not None else f"m{i}"
        members.append(_member_keys(name, vocabulary, first[i], union, size, ends))
    common = [first[0][k] for k in first[0] if all(k in table for table in first)]
    digest = hashlib.sha256(repr((list(map(list, vocabularies)), end_ids)).encode()).hexdigest()
    return Alignment(tuple(members), size, torch.tensor(sorted(common), dtype=torch.int64), digest)


def _first_ids(vocabulary: Sequence[bytes | None]) -> dict[bytes, int]:
    table: dict[bytes, int] = {}
    for token_id, key in enumerate(vocabulary):
        if key is not None:
            table.setdefault(key, token_id)
    return table


def _member_keys(
    name: str,
    vocabulary: Sequence[bytes | None],
    table: dict[bytes, int],
    union: dict[bytes, int],
    size: int,
    ends: list[int],
) -> MemberKeys:
    representative = [-1 if key is None else table[key] for key in vocabulary]
    to_union = [-1 if key is None else union[key] for key in vocabulary]
    from_union, longest = [-1] * size, [-1] * size
    for key, place in union.items():
        from_union[place] = table.get(key, -1)
        prefixes = [table[key[:n]] for n in range(1, len(key) + 1) if key[:n] in table]
        longest[place] = prefixes[-1] if prefixes else -1
    return MemberKeys(
        name=name,
        width=len(vocabulary),
        representative=_ids(representative),
        to_union=_ids(to_union),
        from_union=_ids(from_union),
        longest_prefix=_ids(longest),
        end_ids=_ids(ends),
        byte_fallback=torch.zeros(len(vocabulary), dtype=torch.bool),
    )


def _ids(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
