"""Two tools for the demo's agent: a sum, and a fact of a country."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from langchain_core.tools import tool

from langchain_ensemble.demo.profiles import FACTS

_SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@tool
def calculator(expression: str) -> str:
    """Calculate an expression."""
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        return f"Error: {error}"
    return f"{value:.10g}"


@tool
def country_fact(country: str, field: str) -> str:
    """Look up a fact about a country."""
    fields = FACTS.get(country.strip())
    if fields is None:
        return f"Error: no such country; known: {', '.join(FACTS)}"
    return fields.get(field.strip(), f"Error: no such field; known: {', '.join(fields)}")


def _value(node: ast.expr) -> float:
    """Numbers and the four signs; nothing is ever run as code."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](_value(left), _value(right))
    raise ValueError("only numbers and + - * / ( )")
