"""Affine formulas in x over three channels, from text: `(x - 255*[0.41, 0.42, 0.43]) / (255*0.3)`.

The text is parsed to a syntax tree and only numbers, lists of three numbers, `x`, and + - * / are understood.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

Channels = tuple[float, float, float]
Affine = tuple[Channels, Channels]

_NONE: Channels = (0.0, 0.0, 0.0)


def affine_in_x(formula: str) -> Affine:
    """Slope and offset per channel: slope * x + offset. Raises ValueError, SyntaxError, ZeroDivisionError."""
    return _value(ast.parse(formula.strip(), mode="eval").body)


def _value(node: ast.expr) -> Affine:
    match node:
        case ast.Name(id="x"):
            return (1.0, 1.0, 1.0), _NONE
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _NONE, (float(number),) * 3
        case ast.List(elts=[a, b, c]) | ast.Tuple(elts=[a, b, c]):
            return _NONE, (_number(a), _number(b), _number(c))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _times(_value(operand), (-1.0, -1.0, -1.0))
        case ast.BinOp(left=left, op=op, right=right):
            return _combine(op, _value(left), _value(right))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic with x, numbers and lists of three numbers")


def _combine(op: ast.operator, left: Affine, right: Affine) -> Affine:
    match op:
        case ast.Add():
            return _plus(left, right)
        case ast.Sub():
            return _plus(left, _times(right, (-1.0, -1.0, -1.0)))
        case ast.Mult():
            return _times(left, _constant(right)) if right[0] == _NONE else _times(right, _constant(left))
        case ast.Div():
            a, b, c = _constant(right)
            return _times(left, (1 / a, 1 / b, 1 / c))
    raise ValueError("only + - * / are understood")


def _number(node: ast.expr) -> float:
    return _constant(_value(node))[0]


def _constant(value: Affine) -> Channels:
    slope, offset = value
    if slope != _NONE:
        raise ValueError("the formula is not affine in x")
    return offset


def _plus(left: Affine, right: Affine) -> Affine:
    return _each(left[0], right[0], lambda a, b: a + b), _each(left[1], right[1], lambda a, b: a + b)


def _times(value: Affine, factor: Channels) -> Affine:
    return _each(value[0], factor, lambda a, b: a * b), _each(value[1], factor, lambda a, b: a * b)


def _each(left: Channels, right: Channels, how: Callable[[float, float], float]) -> Channels:
    a, b, c = (how(x, y) for x, y in zip(left, right, strict=True))
    return a, b, c
