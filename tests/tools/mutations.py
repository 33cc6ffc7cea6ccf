"""Finds the places where source text can be changed, for `mutation_trial`.

A change is a small replacement in one file: another operator, a constant off by one, a negated
condition, a dropped argument, and so on. Docstrings, annotations, asserts, raised errors and log
texts are left alone: the tests need not notice a change there.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
BYPASSED = frozenset(
    [
        *("abs", "clamp", "clamp_min", "clone", "contiguous", "detach", "double", "exp"),
        *("flatten", "float", "log", "mean", "normalize", "sqrt", "square", "squeeze", "sum"),
    ]
)
"""Methods whose calls are replaced by the object that they are called on."""
KEPT_DECORATORS = frozenset(
    [
        *("abstractmethod", "cached_property", "classmethod", "contextmanager", "dataclass"),
        *("overload", "override", "property", "setter", "staticmethod"),
    ]
)
LOGGING = frozenset(("debug", "error", "exception", "info", "warn", "warning"))


@dataclass(frozen=True)
class Change:
    """One replacement in a source file.

    Attributes:
        kind: The operator that made it.
        start: First byte that is replaced.
        end: First byte after it.
        text: What takes its place.
        lines: First and last line of the statement, from 1.
        scope: First and last line of the function that must run to show the change; None for
            the whole module.
        imported: Whether the statement runs when the module is imported.
    """

    kind: str
    start: int
    end: int
    text: str
    lines: tuple[int, int]
    scope: tuple[int, int] | None
    imported: bool

    def applied(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def changes(source: bytes) -> list[Change]:
    """All changes of a module; a few of them may not compile.

    Args:
        source: The module's text.
    """
    found = _Finder(source)
    found.visit(ast.parse(source))
    return list(dict.fromkeys(found.changes))


def is_valid(change: Change, source: bytes) -> bool:
    """Whether a changed source compiles, and differs in more than its spelling."""
    try:
        return ast.dump(ast.parse(change.applied(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source, self.changes = source, list[Change]()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines, self._imported = (1, 1), True
        self._scope: tuple[int, int] | None = None

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _add(self, kind: str, start: int, end: int, text: str) -> None:
        self.changes.append(
            Change(kind, start, end, text, self._lines, self._scope, self._imported)
        )

    def _replace(self, kind: str, node: ast.expr | ast.stmt, text: str) -> None:
        self._add(kind, *self._span(node), text)

    def _operator(self, kind: str, left: ast.expr, right: ast.expr, swap: tuple[str, str]) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        between = self.source[start:end].decode()
        if "#" not in between:
            self._add(kind, start, end, between.replace(*swap, 1))

    def visit(self, node: ast.AST) -> None:
        """Keeps the lines of the statement, and passes over what only people read."""
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or _is_message(node):
            return
        before = self._lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            self._lines = (node.lineno, max(node.lineno, last or node.lineno))
        super().visit(node)
        self._lines = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = self._scope, self._imported
        assert node.end_lineno is not None
        if self._imported:
            self._scope = node.body[0].lineno, node.end_lineno
        for decorator in node.decorator_list:
            name = ast.unparse(decorator).partition("(")[0].rpartition(".")[2]
            if name not in KEPT_DECORATORS:
                start, end = self._span(decorator)
                self._add("decorator removed", self.source.rindex(b"@", 0, start), end, "")
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._imported = False
        for statement in node.body:
            self.visit(statement)
        self._scope, self._imported = before

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        self._replace("condition negated", test, f"(not ({self._text(test)}))")

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            self._operator("comparison", left, right, COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            self._operator("arithmetic", node.left, node.right, ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        swap = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._operator("and, or", left, right, swap)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._replace("sign or not removed", node, f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, ast.Add | ast.Sub):
            swap = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
            self._operator("arithmetic", node.target, node.value, swap)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int | float):
            self._replace("constant", node, repr(node.value + 1))
            if node.value != 0:
                self._replace("constant", node, f"(-{self._text(node)})")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and ast.unparse(node.value) != "None":
            self._replace("return None", node.value, "None")
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is None:
                null = '__import__("contextlib").nullcontext()'
                self._replace("context removed", item.context_expr, null)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not _is_message(node.value):
            self._replace("call removed", node, "None")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in BYPASSED:
            self._replace("method bypassed", node, self._text(node.func.value))
        arguments = [self._text(argument) for argument in node.args]
        named = [f"{k.arg}={self._text(k.value)}" if k.arg else "" for k in node.keywords]
        if "" not in named and not any(isinstance(a, ast.Starred) for a in node.args):
            for index in range(len(named)):
                self._call(node, [*arguments, *named[:index], *named[index + 1 :]])
            if len(arguments) > 1:
                self._call(node, [*arguments[:-1], *named])
                self._call(node, [arguments[1], arguments[0], *arguments[2:], *named])
        self.generic_visit(node)

    def _call(self, node: ast.Call, arguments: Sequence[str]) -> None:
        self._replace("arguments", node, f"{self._text(node.func)}({', '.join(arguments)})")


def _is_message(node: ast.AST) -> bool:
    """Whether a node writes a log line, or builds an error."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    return name in LOGGING or name.endswith("Error")
