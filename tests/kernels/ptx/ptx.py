"""Parse PTX text as NVRTC emits it: functions, variables, instructions, labels.

``parse`` accepts what the compiler emits for C++ kernels (no textures, surfaces, aliases or call prototypes) and raises
``PtxError`` on anything else.
"""

from __future__ import annotations

from ptx_model import (
    Address,
    Float,
    Function,
    Group,
    Instruction,
    Integer,
    Module,
    Operand,
    PtxError,
    Register,
    Special,
    Symbol,
    Token,
    Variable,
    constant,
    size_of,
    tokens,
)

_LINKAGE = {".visible", ".weak", ".common", ".extern"}
_SPACES = {".global", ".const", ".shared", ".local", ".param"}
_BOUNDS = {".maxntid", ".reqntid", ".minnctapersm", ".maxnctapersm", ".maxnreg", ".noreturn"}
_END = Token("", 0, 0)


class Scopes:
    """Names declared in nested ``{ }``; an inner name gets a suffix so that names are unique within a function."""

    def __init__(self) -> None:
        self._stack: list[dict[str, str]] = [{}]
        self._opened = 0

    def open(self) -> None:
        self._opened += 1
        self._stack.append({})

    def close(self) -> bool:
        """Leave the innermost scope; False when that was the function itself."""
        self._stack.pop()
        return bool(self._stack)

    def declare(self, name: str) -> str:
        unique = name if len(self._stack) == 1 else f"{name}#{self._opened}"
        self._stack[-1][name] = unique
        return unique

    def resolve(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self._stack) if name in scope), name)


class Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text))
        self._at = 0
        self._module = Module()
        self._scopes = Scopes()
        self._function = Function("", False)

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _token(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def _next(self) -> str:
        text = self._peek()
        self._at += 1
        return text

    def _take(self, text: str) -> bool:
        if self._peek() != text:
            return False
        self._at += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._error(f"{self._peek()!r} where {text!r} should be")

    def _error(self, message: str) -> PtxError:
        return PtxError(f"line {self._token().line}: {message}")

    def _skip_statement(self) -> None:
        while self._peek() and self._next() != ";":
            pass

    def module(self) -> Module:
        while self._peek():
            self._top_level()
        return self._module

    def _top_level(self) -> None:
        word = self._peek()
        if word == ".version":
            self._next()
            self._module.version = self._next()
        elif word == ".target":
            self._next()
            self._module.target = self._next()
            while self._take(","):
                self._next()
        elif word == ".address_size":
            self._next()
            self._expect("64")
        elif word == ".file":
            self._file()
        else:
            self._declaration()

    def _file(self) -> None:
        self._at += 3  # .file, number, name
        while self._take(","):
            self._next()

    def _declaration(self) -> None:
        external = False
        while self._peek() in _LINKAGE:
            external |= self._next() == ".extern"
        word = self._peek()
        if word in (".entry", ".func"):
            self._parse_function(self._next() == ".entry")
        elif word in _SPACES:
            self._module.variables += self._variables(external)
        else:
            raise self._error(f"unsupported directive {word!r}")

    def _variables(self, external: bool) -> list[Variable]:
        """``.shared .align 4 .b8 a[16], b[4] = {...};``"""
        space, type_name, align = self._head()
        found = []
        while True:
            found.append(self._declarator(space, type_name, align, external))
            if not self._take(","):
                break
        self._expect(";")
        return found

    def _head(self) -> tuple[str, str, int]:
        """Space, type and alignment (0: that of the type) of a declaration."""
        space, align = self._next()[1:], 0
        while True:
            word = self._next()
            if word == ".align":
                align = int(self._next())
            elif not word.startswith("."):
                raise self._error(f"{word!r} where a type should be")
            else:
                type_name = word[1:]
                size_of(type_name)
                return space, type_name, align

    def _declarator(self, space: str, type_name: str, align: int, external: bool) -> Variable:
        name = self._next()
        count = self._bounds()
        initial = self._initial(size_of(type_name)) if self._take("=") else b""
        size = size_of(type_name)
        return Variable(space, name, type_name, size * count, align or size, initial, external)

    def _bounds(self) -> int:
        count = 1
        while self._take("["):
            count *= 0 if self._peek() == "]" else int(self._next(), 0)
            self._expect("]")
        return count

    def _initial(self, size: int) -> bytes:
        if not self._take("{"):
            return self._initial_value(size)
        data = b""
        while not self._take("}"):
            data += self._initial(size)
            self._take(",")
        return data

    def _initial_value(self, size: int) -> bytes:
        value = self._number()
        bits = value.bits if isinstance(value, Float) else value.value
        return (bits & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def _number(self) -> Integer | Float:
        negative = self._take("-")
        if not self._peek()[:1].isdigit():
            raise self._error(f"{self._peek()!r} where a number should be")
        value = constant(self._next())
        if not negative:
            return value
        if isinstance(value, Float):
            raise self._error("a sign before the bits of a float")
        return Integer(-value.value)

    def _parse_function(self, entry: bool) -> None:
        self._scopes = Scopes()
        returns = self._parameters() if self._peek() == "(" else []
        name = self._next()
        function = Function(name, entry, returns)
        if self._peek() == "(":
            function.parameters = self._parameters()
        self._skip_bounds()
        if self._take(";"):
            return  # declared here, defined below or, if it isn't, an error for who calls it
        self._function = function
        self._expect("{")
        self._block()
        self._module.functions[name] = function

    def _skip_bounds(self) -> None:
        while self._peek() in _BOUNDS:
            self._next()
            while self._peek()[:1].isdigit() or self._peek() == ",":
                self._next()

    def _parameters(self) -> list[Variable]:
        self._expect("(")
        found = []
        while not self._take(")"):
            found.append(self._parameter())
            self._take(",")
        return found

    def _parameter(self) -> Variable:
        space, type_name, align = self._head()
        while self._peek() in (".ptr", ".align", *_SPACES):  # what a pointer points to: a hint
            if self._next() == ".align":
                self._next()
        name = self._scopes.declare(self._next())
        size = size_of(type_name)
        return Variable(space, name, type_name, size * self._bounds(), align or size)

    def _block(self) -> None:
        while True:
            word = self._peek()
            if word == "":
                raise self._error(f"{self._function.name} does not end")
            if self._take("}"):
                if not self._scopes.close():
                    return
            elif self._take("{"):
                self._scopes.open()
            else:
                self._statement(word)

    def _statement(self, word: str) -> None:
        if word == ".reg":
            self._registers()
        elif word in _SPACES:
            self._local_variables()
        elif word == ".loc":
            self._location()
        elif word == ".pragma":
            self._skip_statement()
        elif self._peek(1) == ":":
            self._label()
        elif word.startswith("."):
            raise self._error(f"unsupported directive {word!r}")
        else:
            self._instruction()

    def _location(self) -> None:
        """``.loc file line column[, function_name label, inlined_at file line column]``"""
        line = self._token().line
        while self._peek() and self._token().line == line:
            self._next()

    def _local_variables(self) -> None:
        for v in self._variables(external=False):
            name = self._scopes.declare(v.name)
            self._function.variables.append(Variable(v.space, name, v.type, v.size, v.align, v.initial))

    def _registers(self) -> None:
        """``.reg .b32 %r<5>, a;``: a range declares %r0 to %r4."""
        self._next()
        type_name = self._next()[1:]
        size_of(type_name)
        while True:
            name = self._next()
            names = [name]
            if self._take("<"):
                names = [f"{name}{i}" for i in range(int(self._next()))]
                self._expect(">")
            for each in names:
                self._function.registers[self._scopes.declare(each)] = type_name
            if not self._take(","):
                break
        self._expect(";")

    def _label(self) -> None:
        name = self._next()
        self._expect(":")
        if self._take(".branchtargets"):
            self._function.tables[name] = [self._next()]
            while self._take(","):
                self._function.tables[name].append(self._next())
            self._expect(";")
        else:
            self._function.labels[name] = len(self._function.body)

    def _instruction(self) -> None:
        first = self._token()
        predicate = self._predicate() if self._take("@") else None
        parts = tuple(self._next().split("."))
        operands = []
        while not self._take(";"):
            operands.append(self._operand())
            if self._peek() != ";":
                self._expect(",")
        last = self._tokens[self._at - 1]
        text = " ".join(self._text[first.start : last.start].split())
        self._function.body.append(Instruction(first.line, text, parts, tuple(operands), predicate))

    def _predicate(self) -> Register:
        operand = self._name()
        if not isinstance(operand, Register) or operand.type != "pred":
            raise self._error("a guard that is no predicate")
        return operand

    def _operand(self) -> Operand:
        if self._take("["):
            return self._address()
        for opening, closing in ("{}", "()"):
            if self._take(opening):
                return self._group(closing)
        first = self._simple()
        return Group((first, self._simple())) if self._take("|") else first

    def _group(self, closing: str) -> Group:
        items = []
        while not self._take(closing):
            items.append(self._simple())
            self._take(",")
        return Group(tuple(items))

    def _simple(self) -> Operand:
        if self._peek() == "-" or self._peek()[:1].isdigit():
            return self._number()
        return self._name()

    def _name(self) -> Register | Special | Symbol:
        negated = self._take("!")
        name = self._scopes.resolve(self._next())
        if name in self._function.registers:
            return Register(name, self._function.registers[name], negated)
        if negated or not name or name[0] not in "%$_.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
            raise self._error(f"{name!r} where an operand should be")
        return Special(name) if name.startswith("%") else Symbol(name)

    def _address(self) -> Address:
        base = self._simple()
        if not isinstance(base, Register | Symbol | Integer):
            raise self._error("unsupported address")
        offset = 0
        if self._take("+") or self._peek() == "-":
            number = self._number()
            if isinstance(number, Float):
                raise self._error("a float in an address")
            offset = number.value
        self._expect("]")
        return Address(base, offset)


def parse(text: str | bytes) -> Module:
    """Parse a PTX module.

    Raises:
        PtxError: with the line, on anything that is not understood.
    """
    return Parser(text.decode() if isinstance(text, bytes) else text).module()
