"""Objects of a schema: declared properties in their order, further ones after them."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from itertools import chain, combinations

from langchain_ensemble.constraints.json_facts import Facts, Schema, all_of, extra_for, matches
from langchain_ensemble.constraints.json_text import STRING_BODY, listed, quoted, spelled
from langchain_ensemble.constraints.json_values import Note
from langchain_ensemble.constraints.language import (
    NEVER,
    Alt,
    Both,
    Except,
    Node,
    Ref,
    Text,
    alt,
    repeat,
    seq,
)
from langchain_ensemble.constraints.regex import search
from langchain_ensemble.errors import ConfigError

_MOST_PATTERNS = 4


class Objects:
    """Objects of one document."""

    def __init__(
        self,
        value: Callable[[Schema, str], Node],
        name: Callable[[Schema, str], Node],
        accepts: Callable[[Schema, str, str], bool],
        rules: MutableMapping[str, Node],
    ) -> None:
        """Keep what reads the values and the names.

        Args:
            value: Reads a schema at a place.
            name: Reads the schema of a name at a place, without the quotes.
            accepts: Whether a schema at a place accepts a name.
            rules: Takes new rules.
        """
        self._value = value
        self._name = name
        self._accepts = accepts
        self._rules = rules

    def node(self, facts: Facts, where: str, note: Note) -> Node:
        """An object.

        Args:
            facts: Conditions on it.
            where: Its place.
            note: Takes what is not enforced.

        Returns:
            Its spellings.
        """
        members = self._members(facts, where)
        if any(member == NEVER and required for member, required in members):
            return NEVER
        further = self._further(facts, where)
        if facts.least_properties and further != NEVER:
            note("minProperties", " where a further name comes twice")
        kept = [pair for pair in members if pair[0] != NEVER]
        return seq(Text("{"), self._in_order(kept, further, facts, where), Text("}"))

    def _members(self, facts: Facts, where: str) -> list[tuple[Node, bool]]:
        """Each declared property as ``"name": value``, and whether it is required."""
        declared = dict(facts.properties)
        for name in facts.required:
            schema = extra_for(facts, name)
            declared.setdefault(name, True if schema is None else schema)
        members = []
        for name, schema in declared.items():
            for pattern, other in facts.by_pattern:
                if matches(pattern, name):
                    schema = {"allOf": [schema, other]}
            allowed = all(self._accepts(s, f"{where}/propertyNames", name) for s in facts.names)
            value = self._value(schema if allowed else False, f"{where}/properties/{name}")
            key = json.dumps(name, ensure_ascii=False)
            members.append((seq(Text(f"{key}: "), value), name in facts.required))
        return members

    def _further(self, facts: Facts, where: str) -> Node:
        """Any one property that is not declared."""
        extra: Schema = not facts.declares if facts.extra is None else facts.extra
        names = [self._name(schema, f"{where}/propertyNames") for schema in facts.names]
        taken = [name for name, _ in facts.properties] + list(facts.required)
        if len(facts.by_pattern) > _MOST_PATTERNS:
            raise ConfigError(
                f"the schema at {where} has {len(facts.by_pattern)} 'patternProperties'; at most "
                f"{_MOST_PATTERNS} can be told apart."
            )
        shapes = [(spelled(search(pattern)), schema) for pattern, schema in facts.by_pattern]
        options = []
        for count in range(len(shapes) + 1):
            for chosen in combinations(range(len(shapes)), count):
                inside = [shapes[n][0] for n in chosen]
                others = [shape for n, (shape, _) in enumerate(shapes) if n not in chosen]
                schema = extra if not chosen else None
                for n in chosen:
                    schema = all_of(schema, shapes[n][1])
                value = self._value(True if schema is None else schema, f"{where}/...")
                key = _key(names + inside, others, taken)
                options.append(seq(quoted(key), Text(": "), value))
        return alt(option for option in options if option != NEVER)

    def _in_order(
        self, members: list[tuple[Node, bool]], further: Node, facts: Facts, where: str
    ) -> Node:
        """The members from the last to the first: what may follow, given how many came before.

        Counting stops where no limit looks any more; with no limits only 0 or more matters,
        for the comma.
        """
        limit = facts.most_properties
        cap = max(1, facts.least_properties, limit or 0)
        unique = len(self._rules)
        after: dict[int, Node] = {}
        for place in range(len(members), -1, -1):
            now: dict[int, Node] = {}
            for count in range(min(place, cap) + 1):
                if place == len(members):
                    node = self._tail(count, further, facts)
                else:
                    member, required = members[place]
                    taken = seq(Text(", " if count else ""), member, after[min(count + 1, cap)])
                    if limit is not None and count >= limit:
                        taken = NEVER
                    node = taken if required else alt((taken, after[count]))
                skipped = place and not members[place - 1][1]  # then two members lead here
                if skipped and not isinstance(node, Text):
                    name = f"{where} {unique} from {place} after {count}"
                    self._rules[name] = node
                    node = Ref(name)
                now[count] = node
            after = now
        return after[0]

    def _tail(self, count: int, further: Node, facts: Facts) -> Node:
        least = max(0, facts.least_properties - count)
        most = None if facts.most_properties is None else facts.most_properties - count
        if most is not None and most < least:
            return NEVER
        if count == 0:
            return listed(further, least, most)
        return repeat(seq(Text(", "), further), least, most)


def _key(inside: list[Node], outside: list[Node], taken: list[str]) -> Node:
    """A name that matches all of some shapes, none of some others, and is not taken."""
    spelled_names = [Text(json.dumps(name, ensure_ascii=False)[1:-1]) for name in taken]
    node = inside[0] if len(inside) == 1 else Both(tuple(inside)) if inside else STRING_BODY
    options = node.options if isinstance(node, Alt) else (node,)
    if not outside and all(isinstance(option, Text) for option in options):
        return alt(option for option in options if option not in spelled_names)
    without = list(chain(outside, spelled_names))
    return Except(node, alt(without)) if without else node
