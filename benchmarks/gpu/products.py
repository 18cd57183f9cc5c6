"""Products by shape: each way to compute them against cuBLAS, and as a share of the card's peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.peaks import peak, share
from benchmarks.gpu.timing import Row, Work, seconds, tried
from trainer.listener import Recorder
from vtrain.engine import carriers, integers
from vtrain.engine.listener import round_result
from vtrain.engine.session import Session
from vtrain.engine.workspace import Workspace
from vtrain.kernels import canonical, device
from vtrain.policy import Policy
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor
# of GPT-2 with 512 tokens (projection, both of the MLP, the head), and squares
SHAPES = (
    (512, 768, 768), (512, 768, 3072), (512, 3072, 768), (512, 768, 50257), (2048, 2048, 2048), (8192, 8192, 8192),
)  # fmt: skip
# each way, and the rate of the card that bounds it
PEAK_OF = {"torch float32": "float32", "torch float64": "float64 units", "torch bfloat16": "bfloat16",
           "chain": "float32", "chain64": "float64"}  # fmt: skip


def ways(where: torch.device, m: int, k: int, n: int) -> dict[str, Callable[[], Work]]:
    """Each way to compute one product, made when its turn comes."""
    a, b = torch.randn(1, m, k, device=where), torch.randn(1, n, k, device=where).mT
    scratch = Workspace()

    def cast(dtype: torch.dtype) -> Work:
        x, y = a.to(dtype), b.to(dtype)
        return lambda: x @ y

    def exact(by: str, digits: int) -> Work:
        return lambda: round_result(integers.product(scratch, a, b, digits, by), FLOAT32)

    return {
        "torch float32": lambda: cast(torch.float32), "torch float64": lambda: cast(torch.float64),
        "torch bfloat16": lambda: cast(torch.bfloat16),
        "chain": lambda: lambda: canonical.product(a, b), "chain64": lambda: lambda: canonical.product(a, b, wide=True),
        "integer, 3 bytes": lambda: exact(carriers.carrier(where), 3),
        "integer, 2 bytes": lambda: exact(carriers.carrier(where), 2),
        "logged": lambda: lambda: a @ b,
    }  # fmt: skip


def products(where: torch.device, tiny: bool) -> Iterator[Row]:
    """A row for each shape and way."""
    most = {} if where.type == "cpu" else peak(device.described(where))
    for m, k, n in ((17, 32, 16),) if tiny else SHAPES:
        theirs = 0.0
        for way, made in ways(where, m, k, n).items():

            def one(way: str = way, made: Callable[[], Work] = made, size: float = 2e-12 * m * k * n) -> Row:
                nonlocal theirs
                work = made()
                if way == "logged":
                    with Session(Recorder(Policy()), Policy(), 0).step(1):
                        taken = seconds(where, work)
                else:
                    taken = seconds(where, work)
                theirs = taken if way == "torch float32" else theirs
                return {"ms": 1e3 * taken, "TFLOP/s": size / taken, "of torch's float32": theirs / taken,
                        "of the peak": share(size / taken, most.get(PEAK_OF.get(way, "")))}  # fmt: skip

            yield tried({"product": f"{m} x {k} x {n}", "by": way}, one)
