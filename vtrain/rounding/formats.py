"""Target formats: what a value may be after an operation (numerics §1)."""

from __future__ import annotations

from dataclasses import dataclass

from vtrain.errors import JobError

# How a format's values lie in memory; the numbers are shared with the kernels (kernels/host/format.hpp).
CONTAINERS = {"float32": 0, "bfloat16": 1, "float16": 2}


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: for people and for the log.
        container: dtype name of the tensors that hold its values.
        p: significant bits, the implicit one included.
        emin: least exponent of a normal number.
        emax: greatest exponent.
    """

    name: str
    container: str
    p: int
    emin: int
    emax: int

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What the kernels take: container, p, emin, emax."""
        return CONTAINERS[self.container], self.p, self.emin, self.emax

    @property
    def bits(self) -> int:
        """Width of the IEEE encoding of a value, sign included."""
        return self.p + (5 if self.emax == 15 else 8)

    @property
    def native(self) -> bool:
        """Whether the container holds nothing else, so that a native IEEE operation already rounds to the format."""
        return self in (FLOAT32, BFLOAT16, FLOAT16)

    @property
    def product_compute(self) -> str:
        """C(T) of products and convolutions (numerics §1): float32 suffices below 12 bits."""
        return "float32" if self.p <= 11 else "float64"


FLOAT32 = Format("float32", "float32", 24, -126, 127)
BFLOAT16 = Format("bfloat16", "bfloat16", 8, -126, 127)
FLOAT16 = Format("float16", "float16", 11, -14, 15)
NATIVE = {f.name: f for f in (FLOAT32, BFLOAT16, FLOAT16)}
TARGETS = tuple(NATIVE)
MIN_BITS, MAX_BITS = 8, 24


def target_in_float32(target: str, bits: int) -> Format:
    """The format that float32 tensors are held to under a policy.

    ``bfloat16`` and ``float16`` targets keep float32 containers whose values are those of the narrower format, so that
    an ordinary float32 model can be trained at either precision.

    Raises:
        JobError: unknown target, bits outside 8..24, or bits given for a 16-bit target.
    """
    if target not in NATIVE:
        raise JobError(f"target is {target!r}, want one of {', '.join(TARGETS)}")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise JobError(f"bits is {bits}, want {MIN_BITS}..{MAX_BITS}")
    if target == "float32":
        return FLOAT32 if bits == 24 else Format(f"float32p{bits}", "float32", bits, -126, 127)
    if bits != 24:
        raise JobError(f"bits is {bits}, but only target 'float32' can be restricted (target is {target!r})")
    narrow = NATIVE[target]
    return Format(f"{target}in32", "float32", narrow.p, narrow.emin, narrow.emax)


def format_by_name(name: str) -> Format:
    """The format of that name, as sites have it; hostile input.

    Raises:
        JobError: there is none.
    """
    if name in NATIVE:
        return NATIVE[name]
    if name.endswith("in32") and name.removesuffix("in32") in NATIVE:
        return target_in_float32(name.removesuffix("in32"), 24)
    bits = name.removeprefix("float32p")
    if bits != name and bits.isascii() and bits.isdecimal() and len(bits) <= 2:
        return target_in_float32("float32", int(bits))
    raise JobError(f"format {name[:40]!r}; want a name as formats have it")
