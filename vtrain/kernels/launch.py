"""Calling a kernel of entries.hpp by name, where its tensors are: ``device`` says who runs it there.

Each argument is 8 bytes: an address, an integer or a float64, in the order of the C++ struct.
"""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Iterator

import torch

from vtrain.errors import OperandError
from vtrain.kernels import _host, device

Argument = torch.Tensor | int | float | None

# p: address (a tensor or None), i: integer, d: float64
PRODUCT = "pppp" + "iiiiiiiiii" + "iiiii" + "dd"
CONVOLUTION = "ppppp" + "i" * 16
ATTENTION = "p" * 14 + "i" * 7 + "i" * 12 + "i" * 4 + "i" * 6 + "i" * 5 + "ddd"
SCAN = "p" * 7 + "i" * 5 + "i" * 9 + "i" * 4 + "i" * 4 + "i" * 4
DEPTHWISE = "pppp" + "i" * 7
DECAY = "p" * 7 + "i" * 7
MAP = "ppp" + "iii" + "dd"
SUM = "ppppp" + "i" * 9
ROW = "pppppppp" + "ii" + "d"
CHANNEL = "pppppppp" + "iii"
SCATTER = "ppppp" + "p" + "ii" + "d"
RUNNING = "pp" + "iii"
STEP = "ppppp" + "iiiii" + "d" * 9
DOUBT = "p" * 10 + "i" * 9 + "ddd"

_MAPS = """
    exp exp2 expm1 log log2 log10 log1p tanh sigmoid erf erfc sin cos sqrt rsqrt tan asin acos atan sinh cosh asinh
    acosh atanh pow power gelu_erf gelu_erf_backward gelu_tanh gelu_tanh_backward silu silu_backward softplus
    softplus_backward
""".split()
_ROWS = """
    softmax softmax_backward log_softmax log_softmax_backward layer_norm layer_norm_backward rms_norm rms_norm_backward
""".split()
SIGNATURES = {
    **dict.fromkeys(("product", "product_wide"), PRODUCT),
    **{
        f"{name}{wide}": CONVOLUTION
        for name in ("convolution", "input_gradient", "weight_gradient")
        for wide in ("", "_wide")
    },
    **dict.fromkeys(("attention", "attention_backward"), ATTENTION),
    "scan": SCAN,
    "depthwise": DEPTHWISE,
    "scan_decay": DECAY,
    **dict.fromkeys(_MAPS, MAP),
    "sum": SUM,
    **dict.fromkeys(_ROWS, ROW),
    **dict.fromkeys(("channel_norm", "channel_norm_backward"), CHANNEL),
    "scatter": SCATTER,
    "running_sum": RUNNING,
    **dict.fromkeys(("sgd", "adam"), STEP),
    **dict.fromkeys(("round", "doubt_count", "doubt_write"), DOUBT),
}
_PACKERS = {s: struct.Struct("<" + s.replace("p", "Q").replace("i", "q")) for s in set(SIGNATURES.values())}


def check_signatures() -> None:
    """Compare the layouts above with what the extension was built from.

    Raises:
        OperandError: they differ: the extension is of another version.
    """
    built = dict(_host.kernels())
    mine = {name: _PACKERS[signature].size for name, signature in SIGNATURES.items()}
    if built != mine:
        wrong = sorted(name for name in {*built, *mine} if built.get(name) != mine.get(name))
        raise OperandError(f"kernels {', '.join(wrong)}: the compiled extension is of another version; install again")


def packed(name: str, arguments: tuple[Argument, ...]) -> bytes:
    """The arguments as the kernel's struct.

    Raises:
        OperandError: an argument of the wrong kind: it would be read as something else.
    """
    signature = SIGNATURES[name]
    if len(signature) != len(arguments):
        raise OperandError(f"kernel {name}: {len(arguments)} arguments, want {len(signature)}")
    values: list[int | float] = []
    for kind, value in zip(signature, arguments, strict=True):
        if kind == "p" and (value is None or isinstance(value, torch.Tensor)):
            values.append(0 if value is None else value.data_ptr())
        elif kind == "i" and isinstance(value, int):
            values.append(value)
        elif kind == "d" and isinstance(value, float | int):
            values.append(float(value))
        else:
            raise OperandError(f"kernel {name}: argument {len(values)} is {type(value).__name__}, want kind {kind!r}")
    return _PACKERS[signature].pack(*values)


_counts: Counter[str] | None = None


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the kernels that are launched inside, by device; by nobody else at the same time."""
    global _counts
    _counts = found = Counter[str]()
    try:
        yield found
    finally:
        _counts = None


def launch(name: str, *arguments: Argument) -> None:
    """Run a kernel where its tensors are, which live until it is launched; the caller has checked dtypes and layouts.

    Raises:
        OperandError: they are on several devices: an address of one is none of another's.
    """
    places = [a.device for a in arguments if isinstance(a, torch.Tensor)]
    where = places[0]
    if any(place != where for place in places):
        several = " and ".join(sorted({str(place) for place in places}))
        raise OperandError(f"kernel {name}: its tensors are on {several}; move them to one device")
    if _counts is not None:
        _counts[str(where)] += 1
    device.of(where).launch(where, name, packed(name, arguments))


check_signatures()
