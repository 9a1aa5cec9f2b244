"""Finds the function that a chat answer defines, among its prose, its examples and its other blocks.

It compiles code to look at it, and never runs it. Fences follow CommonMark (spec.commonmark.org, "Fenced code blocks").
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from textwrap import indent

MAX_CUTS = 10  # tries to find the end of code in prose; chosen, not tuned: each cut after the first is of rare prose
# a fence begins its line, perhaps behind the mark of a list; backticks in the rest of the line make it inline code
_OPENING = re.compile(r"(\s*(?:(?:[-*+]|\d+[.)])\s+)?)(`{3,}(?=[^`]*$)|~{3,})")
_CLOSING = re.compile(r"(\s*)(`{3,}|~{3,})\s*")
_STATEMENT = re.compile(r"\s*(?:import |from |def |class |async |@|\w+ *=)")
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
_RESULTS = (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)


def find_code(text: str, names: Collection[str], *, prompt: str) -> str:
    """The part of a chat answer that defines one of `names`, to be put behind `prompt`.

    It is the last fenced block that defines one of them, behind the earlier blocks that it uses; else the text from the
    first line on that does so. If nothing defines them, it is the last block, or else the text, that continues the
    prompt's function. If nothing does, it is the last block or the whole text. A function that returns nothing, such
    as a repeated signature, is no definition.

    Args:
        text: the answer, without tabs.
        names: functions that are asked for.
        prompt: beginning of a module, such as a function without its body; may be empty.
    """
    with warnings.catch_warnings(action="ignore"):  # such as of an invalid escape, with which code runs
        return _found(text.replace("\r\n", "\n"), names, prompt)


def free_names(source: str) -> set[str]:
    """The names that a module uses, but neither it nor Python defines; empty if it is not Python."""
    with warnings.catch_warnings(action="ignore"):
        return _free(source)


def _found(text: str, names: Collection[str], prompt: str) -> str:
    blocks = list(_blocks(text.split("\n")))
    for i, block in reversed(list(enumerate(blocks))):
        if _defines(block, names):
            return _with_needed(block, blocks[:i], names)
    if code := _from_some_line(text.split("\n"), names, _MODULE, ""):
        return code
    for part in [*reversed(blocks), text]:
        if code := _from_some_line(part.split("\n"), names, _BODY, prompt):
            return code
    return blocks[-1] if blocks else text


def _from_some_line(
    lines: Sequence[str], names: Collection[str], shapes: Sequence[Callable[[str], str]], before: str
) -> str:
    """The first code among the lines that defines one of the names behind `before`; empty if there is none."""
    at = 0
    while at < len(lines):
        n_read = 1
        for shape in shapes:
            code = _readable(shape("\n".join(lines[at:])), before)
            if _defines(f"{before}\n{code}", names):
                return code
            n_read = max(n_read, code.count("\n") + 1)
        at += n_read  # what was read defines nothing, so none of its lines does
    return ""


def _free(source: str) -> set[str]:
    if _syntax_error(source):
        return set()
    table = symtable.symtable(source, "", "exec")
    return {name for name in _used(table) if not hasattr(builtins, name)} - _bound(source)


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """The fenced blocks, without the indentation of their fences; the last one may lack its closing fence."""
    at = 0
    while at < len(lines):
        opening = _OPENING.match(lines[at])
        at += 1
        if opening is None:
            continue
        indentation, fence = len(opening[1]), opening[2]
        end = next((i for i in range(at, len(lines)) if _closes(lines[i], fence, indentation)), len(lines))
        yield _dedented("\n".join(lines[at:end]))
        at = end + 1


def _closes(line: str, fence: str, indentation: int) -> bool:
    found = _CLOSING.fullmatch(line)
    # a fence that is indented by four or more belongs to the code, such as to a docstring
    return found is not None and found[2].startswith(fence) and len(found[1]) < indentation + 4


def _dedented(text: str) -> str:
    """The text with the indentation of its first line removed from all lines."""
    first = text.lstrip("\n")
    return re.sub(rf"(?m)^ {{1,{len(first) - len(first.lstrip(' '))}}}", "", text) if first.startswith(" ") else text


def _from_statement(text: str) -> str:
    """The text, dedented, if it begins with a statement: prose may be Python too, such as a single word."""
    return _dedented(text) if _STATEMENT.match(text) else ""


# the body of a function as it is, with all its lines dedented, or with its first line alone dedented
_MODULE = (_from_statement,)
_BODY = (str, lambda text: indent(_dedented(text), "    "), lambda text: f"    {text}")


def _with_needed(block: str, earlier: Sequence[str], names: Collection[str]) -> str:
    """The block behind the earlier blocks that define what it uses."""
    written = set().union(*map(_bound, earlier))
    # an answer in several files imports from its own files, which do not exist
    lines = block.split("\n")
    for node in ast.parse(block).body:
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} <= written:
            for i in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[i - 1] = ""
    found = "\n".join(lines)
    for other in reversed(earlier):
        if _bound(other) & (_free(found) | set(names) - _bound(found)):
            found = f"{other}\n{found}"
    return found


def _readable(text: str, behind: str) -> str:
    """The beginning of a text up to the first line that is not Python behind other code."""
    n_before = behind.count("\n") + 1
    for _ in range(MAX_CUTS):
        error = _syntax_error(f"{behind}\n{text}")
        if not error:
            return text
        # prose may open a string or a bracket that does not end: its last line goes
        text = "\n".join(text.split("\n")[: min(max(error - n_before - 1, 0), text.count("\n"))])
    return ""


def _syntax_error(source: str) -> int:
    """The line of the first error of a module; 0 if there is none."""
    try:
        compile(source, "", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 1
    except _UNREADABLE:
        return 1
    return 0


def _defines(source: str, names: Collection[str]) -> bool:
    """Whether a module is Python and defines one of `names` by a class, a value or a function with a result."""
    if _syntax_error(source):
        return False
    last = {name: node for node in ast.parse(source).body for name in _names_of(node) if name in names}
    return any(
        not isinstance(node, ast.FunctionDef) or any(isinstance(part, _RESULTS) for part in ast.walk(node))
        for node in last.values()
    )


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _used(table: symtable.SymbolTable) -> set[str]:
    """The global names that a scope and the scopes in it use."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
    return own.union(*map(_used, table.get_children()))


def _bound(source: str) -> set[str]:
    """The names that a module defines or imports; empty if it is not Python."""
    if _syntax_error(source):
        return set()
    symbols = symtable.symtable(source, "", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
