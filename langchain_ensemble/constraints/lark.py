"""Languages in llguidance's dialect of Lark: rules, and terminals that are regular expressions.

llguidance reads terminals greedily, one at a time, so a terminal must not be able to go on where
the next one starts. Everything between two references therefore becomes one terminal; what is
left to rules (objects with optional members, recursion) has a comma or a bracket at every seam
inside. A recursive schema whose value may be a bare number must not be joined with digits.
"""

from __future__ import annotations

from collections.abc import Callable

from langchain_ensemble.constraints.language import (
    EMPTY,
    Alt,
    Both,
    Chars,
    Except,
    Language,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    children,
    is_regular,
    needs_sets,
    seq,
)


class LarkText:
    """Collects the rules and terminals of one grammar."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._terminals: dict[str, str] = {}

    def add(self, name: str, body: str, options: str = "") -> str:
        """Add a rule.

        Args:
            name: Its name, in lower case.
            body: What it is.
            options: What stands in brackets after the name.

        Returns:
            The name.
        """
        self._lines.append(f"{name}{options}: {body}")
        return name

    def new_name(self) -> str:
        """A name that no rule has.

        Returns:
            In lower case.
        """
        self._lines.append("")
        return f"r{len(self._lines)}"

    def language(self, language: Language) -> str:
        """Write down a language.

        Args:
            language: Its start and rules.

        Returns:
            What stands for it in a rule.
        """
        names = {name: self.new_name() for name in _reachable(language)}
        for name, own in names.items():
            self.add(own, self._rule(language.rules[name], names))
        return self._rule(language.start, names)

    def terminal(self, body: str) -> str:
        """Add a terminal.

        Args:
            body: A regular expression in Lark's notation.

        Returns:
            Its name.
        """
        return self._terminals.setdefault(body, f"T{len(self._terminals)}")

    def text(self, start: str) -> str:
        """Finish.

        Args:
            start: What the whole text is.

        Returns:
            The grammar.
        """
        terminals = [f"{name}: {body}" for body, name in self._terminals.items()]
        return "\n".join([f"start: {start}", *filter(None, self._lines), *terminals]) + "\n"

    def _rule(self, node: Node, names: dict[str, str]) -> str:
        if node == EMPTY:
            return '""'
        if is_regular(node):
            return self.terminal(expression(node))
        match node:
            case Ref(name):
                return names[name]
            case Seq(parts):
                return " ".join(self._rule(part, names) for part in _runs(parts, _has_ref))
            case Alt(options):
                return f"({' | '.join(self._rule(option, names) for option in options)})"
            case Repeat(part, least, most):
                return f"({self._rule(part, names)}){_count(least, most)}"
        raise AssertionError(f"{node} holds a reference where it cannot")


def expression(node: Node) -> str:
    """Write a regular node as the body of a terminal.

    Args:
        node: A node without references.

    Returns:
        Lark's notation: one regular expression between the signs for sets.
    """
    if not needs_sets(node):
        return f"/{_regex(node)}/" if node != EMPTY else '""'
    match node:
        case Seq(parts):
            return f"({' '.join(expression(part) for part in _runs(parts, needs_sets))})"
        case Alt(options):
            return f"({' | '.join(expression(option) for option in options)})"
        case Repeat(part, least, most):
            return f"({expression(part)}){_count(least, most)}"
        case Both(parts):
            return f"({' & '.join(expression(part) for part in parts)})"
        case Except(part, without):
            return f"({expression(part)} & ~({expression(without)}))"
    raise AssertionError(f"{node} is not regular")


def _regex(node: Node) -> str:
    match node:
        case Text(text):
            return "".join(map(_escaped, text))
        case Chars(ranges):
            inside = "".join(
                _code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in ranges
            )
            return f"[{inside}]"
        case Seq(parts):
            return "".join(_regex(part) for part in parts)
        case Alt(options):
            return f"({'|'.join(_regex(option) for option in options)})"
        case Repeat(part, least, most):
            return f"({_regex(part)}){_count(least, most)}"
    raise AssertionError(f"{node} is not a plain expression")


def _escaped(character: str) -> str:
    plain = character.isascii() and (character.isalnum() or character in " _:,<>@=!%&;'~`")
    return character if plain or not character.isascii() else _code(ord(character))


def _code(code: int) -> str:
    return f"\\u{{{code:x}}}"


def _count(least: int, most: int | None) -> str:
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    return f"{{{least},{most}}}"


def _has_ref(node: Node) -> bool:
    return not is_regular(node)


def _runs(parts: tuple[Node, ...], apart: Callable[[Node], bool]) -> list[Node]:
    """The parts, with neighbours that need not stand apart in one."""
    runs: list[Node] = []
    for part in parts:
        if runs and not apart(runs[-1]) and not apart(part):
            runs[-1] = seq(runs[-1], part)
        else:
            runs.append(part)
    return runs


def _reachable(language: Language) -> list[str]:
    found: dict[str, None] = {}
    todo = [language.start]
    while todo:
        node = todo.pop()
        if isinstance(node, Ref):
            if node.name not in found:
                found[node.name] = None
                todo.append(language.rules[node.name])
        else:
            todo.extend(children(node))
    return list(found)
