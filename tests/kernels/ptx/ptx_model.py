"""What a PTX module consists of, and its tokens; ``ptx.parse`` makes the one from the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

WIDTHS = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16, "16x2": 4}  # bytes, by the digits of a type's name
_TYPE = re.compile(r"(?:b|u|s|f|bf)(8|16x2|16|32|64|128)|pred")


class PtxError(Exception):
    """PTX that is malformed, unsupported or faulty when executed."""


@dataclass(frozen=True)
class Register:
    """A register; ``negated`` for a predicate used as ``!%p``."""

    name: str
    type: str
    negated: bool = False


@dataclass(frozen=True)
class Special:
    """A register that the hardware sets: ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Integer:
    value: int


@dataclass(frozen=True)
class Float:
    """A floating constant: its bits and their number of bytes."""

    bits: int
    size: int


@dataclass(frozen=True)
class Symbol:
    """The name of a variable, a function or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Register | Symbol | Integer
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """Several operands in one place: ``{a, b}``, ``(a, b)``, or ``p|q``."""

    items: tuple[Operand, ...]


Operand = Register | Special | Integer | Float | Symbol | Address | Group


@dataclass(frozen=True)
class Variable:
    """A declaration in memory.

    Attributes:
        size: bytes; 0 for an array without bound (``extern .shared``).
        initial: first bytes of the value, or empty.
    """

    space: str
    name: str
    type: str
    size: int
    align: int
    initial: bytes = b""
    external: bool = False


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        parts: the opcode, split at its dots: ``("ld", "global", "f64")``.
        predicate: the register that must be true (false if negated) for a thread to execute it.
    """

    line: int
    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Register | None = None

    @property
    def opcode(self) -> str:
        return ".".join(self.parts)


@dataclass
class Function:
    """A kernel (``entry``) or device function; labels and branch tables point into ``body`` by index."""

    name: str
    entry: bool
    returns: list[Variable] = field(default_factory=list)
    parameters: list[Variable] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    body: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Module:
    version: str = ""
    target: str = ""
    variables: list[Variable] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)

    @property
    def kernels(self) -> list[str]:
        return [f.name for f in self.functions.values() if f.entry]


@dataclass(frozen=True)
class Token:
    text: str
    line: int
    start: int


_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<word>"[^"]*"|[%$._A-Za-z](?:[\w$.%]|::)*|\d[\w.]*)
      | (?P<mark>[{}()\[\]<>,;:+\-=|!@])""",
    re.VERBOSE | re.DOTALL,
)


def tokens(text: str) -> Iterator[Token]:
    """Split PTX into tokens; comments are dropped."""
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PtxError(f"line {line}: unexpected {text[at : at + 20]!r}")
        if match.lastgroup != "skip":
            yield Token(match[0], line, at)
        line += match[0].count("\n")
        at = match.end()


def size_of(type_name: str) -> int:
    """Bytes of a type; a predicate counts as one."""
    match = _TYPE.fullmatch(type_name)
    if match is None:
        raise PtxError(f"unknown type .{type_name}")
    return WIDTHS[match[1]] if match[1] else 1


def is_type(part: str) -> bool:
    return _TYPE.fullmatch(part) is not None


def constant(text: str) -> Integer | Float:
    """A number as PTX writes it: decimal, octal, binary, hexadecimal, ``0f`` and ``0d`` with the bits of a float."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Float(int(text[2:], 16), 4)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Float(int(text[2:], 16), 8)
    digits = text.rstrip("U")
    octal = re.fullmatch(r"0[0-7]+", digits) is not None
    try:
        return Integer(int(digits, 8) if octal else int(digits, 0))
    except ValueError:
        raise PtxError(f"{text!r} is no number") from None
