"""Evaluation of the equations models write, without ever executing them."""

import ast
import math
import operator
import re
from collections.abc import Callable

# Everything an equation may be made of. Letters, commas and exponents are turned away before Python's parser sees them.
_ALLOWED_CHARACTERS = re.compile(r"[\d.+\-*/() ]+")
_SOLVED_FOR_X = re.compile(r"\s*[xX]\s*=\s*([^\n]*)")
_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate_expression(expression: str) -> float | None:
    """Value of an arithmetic expression of numbers, `+ - * /`, unary minus and parentheses.

    Returns None for anything else, for a division by zero and for a value too large for a float.
    """
    if not _ALLOWED_CHARACTERS.fullmatch(expression):
        return None
    try:
        value = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return value if math.isfinite(value) else None


def evaluate_equation(text: str) -> float | None:
    """Value of X in an equation solved for it, such as `X=((22.0-14.0)/4.0)`.

    Only the first line of `text` counts, `x` may be of either case, and spaces are free. Returns None where that line
    is not such an equation, among them equations that would first have to be solved (`X-6=52`).
    """
    match = _SOLVED_FOR_X.match(text)
    return evaluate_expression(match.group(1)) if match else None


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError(f"{ast.unparse(node)} is not arithmetic")
