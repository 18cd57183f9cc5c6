"""Points of Ed25519 from their 32 bytes, by RFC 8032 §5.1.3 and no other spelling; exact integers, no secrets.

OpenSSL verifies without any of these checks: it takes keys of small order, under which one constant signs everything,
and reduces coordinates from p on. A key is asked more here than in RFC 8032: it must lie in the subgroup of prime
order, where every honest key s B lies. A key with a part of order 2, 4 or 8 lets its owner make signatures that one
correct verifier takes and another refuses (with or without the cofactor; Chalkias, Garillot, Nikolaenko, "Taming the
many EdDSAs", 2020), so that a proof would depend on who reads it. Nothing honest is lost.
"""

from __future__ import annotations

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493  # order of the base point
D = -121665 * pow(121666, -1, P) % P
_ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
POINT_BYTES = 32

Point = tuple[int, int, int, int]  # extended: x/z, y/z, and t with x y = z t (RFC 8032 §5.1.4)
NEUTRAL: Point = (0, 1, 1, 0)


def decode(data: bytes) -> Point:
    """The point that 32 bytes stand for.

    Raises:
        ValueError: y is p or more, x is 0 with sign 1, or no point has this y; says which.
    """
    if len(data) != POINT_BYTES:
        raise ValueError(f"{len(data)} bytes, want {POINT_BYTES}")
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= P:
        raise ValueError("not canonical: its y is not below p")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P  # D y^2 + 1 is never 0: -1/D is no square
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P:
        raise ValueError("no point of the curve")
    if not x and sign:
        raise ValueError("not canonical: its x is 0 with sign 1")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def encode(point: Point) -> bytes:
    """The one spelling of a point (RFC 8032 §5.1.2)."""
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(POINT_BYTES, "little")


def add(a: Point, b: Point) -> Point:
    """The sum; the formula is complete (RFC 8032 §5.1.4)."""
    m, n = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    t, z = 2 * D * a[3] * b[3], 2 * a[2] * b[2]
    e, f, g, h = (n - m) % P, (z - t) % P, (z + t) % P, (n + m) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(factor: int, point: Point) -> Point:
    """The point added to itself ``factor`` times, 0 or more."""
    total = NEUTRAL
    while factor:
        if factor & 1:
            total = add(total, point)
        point, factor = add(point, point), factor >> 1
    return total


def is_neutral(point: Point) -> bool:
    """Whether it is the neutral element."""
    return point[0] % P == 0 and (point[1] - point[2]) % P == 0


def is_of_small_order(point: Point) -> bool:
    """Whether its order is 1, 2, 4 or 8."""
    return is_neutral(multiply(8, point))


def check_key(data: bytes) -> None:
    """Check the bytes of a public key.

    Raises:
        ValueError: as ``decode``; or a point of small order, or with a part of small order; says which.
    """
    point = decode(data)
    if is_of_small_order(point):
        raise ValueError("a point of small order, under which anybody can sign")
    if not is_neutral(multiply(L, point)):
        raise ValueError("a point with a part of small order, whose signatures not every verifier takes")


def check_signature(data: bytes) -> None:
    """Check the form of a signature's 64 bytes: R a point in its one spelling and not of small order, S below L.

    Raises:
        ValueError: it is not so; says what.
    """
    if len(data) != 2 * POINT_BYTES:
        raise ValueError(f"{len(data)} bytes, want {2 * POINT_BYTES}")
    if int.from_bytes(data[POINT_BYTES:], "little") >= L:
        raise ValueError("its S is not below the group's order")
    try:
        point = decode(data[:POINT_BYTES])
    except ValueError as error:
        raise ValueError(f"its R is {error}") from error
    if is_of_small_order(point):
        raise ValueError("its R is a point of small order")
