"""What a handler may ask for: formats, scratch memory, settling, random numbers (numerics §1-6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import torch

from vtrain.engine.aliases import Watched
from vtrain.engine.backend import check_device
from vtrain.engine.definition import DefinitionFn
from vtrain.engine.generators.keys import Draw, next_draw
from vtrain.engine.generators.owner import Own
from vtrain.engine.generators.torches import is_global
from vtrain.engine.listener import Listener, ScaleFn, Site, Vary, round_result
from vtrain.engine.workspace import Workspace
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.rounding.bounds import FACTORS, FUNCTION_KAPPA, LONGEST, fit_float32
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from vtrain.rounding.generic import container
from vtrain.rounding.scale import Scale

F32, F64 = torch.float32, torch.float64
Seen: TypeAlias = Callable[[Any, tuple, dict, Any], None]
_NO_OVERFLOW = 2.0**126  # of sums in float32, with room for their roundings


def _largest(x: torch.Tensor) -> float:
    """Largest magnitude, or a bound of it that needs no pass; NaN where there is one."""
    if x.dtype is torch.float16:
        return 65504.0
    return max(abs(float(end)) for end in torch.aminmax(x)) if x.numel() else 0.0


def over(x: torch.Tensor, divisor: float) -> torch.Tensor:
    """x / divisor as a division by a tensor: a scalar divisor may become a multiplication (numerics §2)."""
    return torch.div(x, torch.full((), divisor, dtype=x.dtype, device=x.device))


class Engine:
    """State of one run's execution, shared by all handlers.

    Args:
        listener: who settles.
        policy: what float32 results are rounded to, and which operations are canonical.
        seed: of all random numbers, below 2^128.

    Attributes:
        chain: whether products and convolutions are canonical chains.
        wide_chain: whether these are accumulated in float64.
        integer: whether products and convolutions are canonical, of exact integers.
        canonical: whether other operations are, where there is a kernel for them.
        seen: called with each operation that a program does, its operands and results; None for nobody.
        exhausted: the operation in which memory ran out in this step; empty where none did.
        own: the generators of the step that is under way.
    """

    own: Own

    def __init__(self, listener: Listener, policy: Policy, seed: int | str) -> None:
        float32_format = policy.format
        self.chain, self.wide_chain = policy.matmul in ("chain", "chain64"), policy.matmul == "chain64"
        self.integer = policy.matmul == "integer"
        self.canonical = policy.other == "canonical"
        self.listener = listener
        self.policy = policy
        self.seed = seed
        self.workspace = Workspace()
        self.watched = Watched()
        self.formats = {torch.float32: float32_format, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
        self.restricted = not float32_format.native
        self.op = ""
        self.exhausted = ""
        self.step = 0
        self.seq = 0
        self.scalars = 0
        self.seen: Seen | None = None
        self.walk: list[int] = []
        self.names: dict[tuple, int] = {}
        self.sites: list[str] = []
        self._checked: set[torch.device] = set()

    def begin_step(self, step: int) -> None:
        """Start numbering sites and scalars anew."""
        self.step, self.seq, self.scalars = step, 0, 0
        self.walk = []
        self.exhausted = ""

    def ran_out(self, op: str) -> None:
        """Memory ran out in an operation: scratch memory is given back, for who tries with less."""
        self.exhausted = self.exhausted or op
        self.workspace.clear()

    # ---- formats ------------------------------------------------------------------------------------------------
    def format(self, dtype: torch.dtype) -> Format:
        """Target format of results of ``dtype``.

        Raises:
            UnsupportedOperation: there is no wider C for it (float64, complex, float8).
        """
        fmt = self.formats.get(dtype)
        if fmt is None:
            if not (dtype.is_floating_point or dtype.is_complex):
                self.refuse(f"a floating-point result of operands of {dtype}; convert them to float32 before")
            single = "; in float64, conversions and single additions, products, quotients and square roots are covered"
            self.refuse(
                f"a result of {dtype} that is rounded more than once on the way, and there is no wider type to compute "
                f"it in; use float32{single if dtype is F64 else ''}"
            )
        return fmt

    def product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """C of products and convolutions whose result has ``dtype``."""
        return getattr(torch, self.format(dtype).product_compute)

    def product_dtype_of(
        self, terms: int, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, alpha: float = 1,
        beta: float = 1,
    ) -> torch.dtype:  # fmt: skip
        """C of alpha * (sums of ``terms`` products of elements of a and b) + beta * bias: such that a bound holds.

        float64 where float32's would be wider than the values are (``LONGEST``), where it would not hold because of the
        factors (``fit_float32``), and where a partial sum may overflow in one order and not in another. A format does
        not limit its operands, as batches and given weights enter as they are; a dtype does. The choice depends on
        shapes, factors and operands alone, so both sides make it alike (numerics §3).

        Raises:
            UnsupportedOperation: longer sums or larger factors than float64 has a bound for.
        """
        self.check_factor(alpha)
        self.check_factor(beta)
        if terms > LONGEST["float64"]:
            self.refuse(f"sums of {terms} terms; at most {LONGEST['float64']} are covered")
        c = self.product_dtype(a.dtype)
        if c is not F32:
            return c
        if terms > LONGEST["float32"] or not fit_float32(alpha, beta if bias is not None else 0):
            return F64
        rest = 0.0 if bias is None or beta == 0 else abs(beta) * _largest(bias)
        return F32 if terms * _largest(a) * _largest(b) + rest < _NO_OVERFLOW else F64

    def check_factor(self, value: float) -> None:
        """Refuse a factor with which float64 would leave its range: there no error bound holds.

        Raises:
            UnsupportedOperation: its magnitude is outside ``FACTORS``, and it is not 0.
        """
        if value != 1 and value != 0 and not FACTORS[0] <= abs(value) <= FACTORS[1]:
            self.refuse(f"a factor of {value!r}; 0 and magnitudes from 2^-700 to 2^700 are covered")

    def refuse(self, why: str) -> NoReturn:
        """Raise for something that this operation can't do."""
        raise UnsupportedOperation(f"{self.op}: {why}")

    # ---- settling -----------------------------------------------------------------------------------------------
    def settle(
        self, part: str, y: torch.Tensor, scale: ScaleFn, fmt: Format, vary: Vary | None = None, signed: bool = False,
        definition: DefinitionFn | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Round a result computed in C; what was in doubt is logged, or decided by the log (numerics §3-5).

        Args:
            part: which result of the operation; empty if it has one.
            y: the result in C, any layout.
            scale: computes its error scale.
            fmt: format to round to.
            vary: computes y in another order (see Listener.settle).
            signed: whether a zero keeps its sign (see Site).
            definition: what y is exactly (see Site).

        Returns:
            New contiguous tensor of y's shape in the format's container.
        """
        site = self._site(part, y, fmt, signed, False, definition)
        if y.numel() == 0:
            return torch.empty(y.shape, dtype=container(fmt), device=y.device)
        return self.listener.settle(site, y.contiguous(), scale, vary)

    def fixed(
        self, part: str, y: torch.Tensor, fmt: Format, signed: bool = False, definition: DefinitionFn | None = None
    ) -> torch.Tensor:
        """Round the result of a canonical kernel, in C or in float32 already; nothing is in doubt.

        Args:
            part, fmt, signed: as for ``settle``.
            definition: what a referee computes single elements by, without doing the whole operation again.
        """
        site = self._site(part, y, fmt, signed, True, definition)
        out = y if y.dtype is F32 and fmt == FLOAT32 else round_result(y.contiguous(), fmt, signed)
        self.listener.canonical(site, out)
        return out

    def rounded(self, part: str, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A canonical kernel's float32 result, rounded once to the target of ``dtype``."""
        return self.finish(self.fixed(part, y, FLOAT32), dtype)

    def _site(
        self, part: str, y: torch.Tensor, fmt: Format, signed: bool, canonical: bool,
        definition: DefinitionFn | None = None,
    ) -> Site:  # fmt: skip
        if not y.is_cpu and y.device not in self._checked:
            check_device(y.device)
            self._checked.add(y.device)
        name = f"{self.op}/{part}" if part else self.op
        key = (name, y.shape, fmt, canonical)
        number = self.names.get(key)
        site = Site(self.step, self.seq, name, tuple(y.shape), fmt, signed, canonical, definition)
        if number is None:
            number = self.names[key] = len(self.sites)
            self.sites.append(str(site))
        self.walk.append(number)
        self.seq += 1
        return site

    def function(
        self, y: torch.Tensor, fmt: Format = FLOAT32, part: str = "", kappa: float = FUNCTION_KAPPA,
        definition: DefinitionFn | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Settle an elementwise function computed in float64, s = |y|."""
        scale = Scale("function", 1, kappa, (1, 1, y.numel()), relative=True)
        return self.settle(part, y, lambda: scale, fmt, signed=True, definition=definition)

    # ---- composites compute in float32 with float64 behind it, whatever T is ---------------------------------------
    def wide(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x in float64, in scratch memory."""
        return self.workspace.widen(name, x, F64)

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        """x in float32, exactly."""
        return x if x.dtype is F32 else x.to(F32)

    def finish(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A composite's float32 result, rounded once to the target of ``dtype`` (class 2)."""
        fmt = self.format(dtype)
        if fmt == FLOAT32:
            return x
        if fmt.native:
            return x.to(dtype)
        return round_result(x.contiguous(), fmt)

    # ---- random numbers -------------------------------------------------------------------------------------------
    def next_draw(self, generator: torch.Generator | None = None) -> Draw:
        """The stream and the key of one draw from a generator, which goes on by it (numerics §2, class 5).

        Args:
            generator: what the operation was given; torch's global ones mean the step's own.
        """
        return next_draw(self.own.torch if generator is None or is_global(generator) else generator)

    def scalar(self, value: float, plain: bool = False) -> float:
        """The host scalar to use for ``value`` (numerics §2); ``plain`` as ``Listener.scalar`` has it."""
        self.scalars += 1
        return self.listener.scalar(self.step, self.scalars - 1, value, plain)
