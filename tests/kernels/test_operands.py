"""What the kernels refuse: each wrong operand by an error that names the kernel and the tensor."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from vtrain import kernels
from vtrain.errors import OperandError
from vtrain.kernels import _host, canonical, launch  # type: ignore[attr-defined]
from vtrain.rounding.formats import FLOAT32
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
Call = Callable[..., object]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


KEY = (2, 3, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1, 5, 5, 1)
FLAGS = (False,) * 4 + (0.1,) * 9
SCALE = Scale("test", 1, 1.0, (1, 1, 6), relative=True)


def _convolution(kind: str) -> Call:
    return lambda x, weight, grad, bias=None: canonical.convolution(kind, x, weight, grad, bias, KEY, False)


def _sum(kind: str, *names: str) -> Call:
    return lambda **t: canonical.sum_terms(kind, [1], *(t[name] for name in names))


def _step(kernel: str) -> Call:
    def call(param: Tensor, grad: Tensor, **state: Tensor) -> None:
        canonical.optimizer_step(kernel, param, grad, tuple(state.get(s) for s in ("first", "second", "most")), *FLAGS)

    return call


IMAGES = {"x": (2, 3, 5, 5), "weight": (4, 3, 3, 3), "grad": (2, 4, 5, 5)}
CHANNEL = {name: (4,) for name in ("mean", "gain", "offset", "slope")}
# kernel's name in errors; call by names of tensors; their shapes; further shapes that are wrong
Case = tuple[str, Call, dict[str, tuple[int, ...]], dict[str, list[tuple[int, ...]]]]
CASES: dict[str, Case] = {
    "product": (
        "product", lambda a, b, bias: canonical.product(a, b, bias),
        {"a": (2, 3, 4), "b": (2, 4, 5), "bias": (5,)},
        {"a": [(3, 4), (1, 3, 4), (2, 3, 5)], "b": [(4, 5), (3, 4, 5), (2, 5, 5)],
         "bias": [(6,), (4, 1), (1, 2, 3, 5)]},
    ),
    "product_wide": (
        "product_wide", lambda a, b, bias: canonical.product(a, b, bias, wide=True),
        {"a": (2, 3, 4), "b": (2, 4, 5), "bias": (5,)}, {"b": [(2, 5, 5)], "bias": [(6,)]},
    ),
    **{
        kind: (kind, _convolution(kind), {**IMAGES, **({"bias": (4,)} if kind == "convolution" else {})},
               {"x": [(2, 3, 6, 6)], "weight": [(5, 3, 3, 3)], "grad": [(2, 4, 5, 6)],
                **({"bias": [(5,)]} if kind == "convolution" else {})})
        for kind in ("convolution", "input_gradient", "weight_gradient")
    },
    "activation": ("gelu_erf_backward", lambda x, grad: canonical.activation("gelu_erf", x, grad),
                   {"x": (3, 2), "grad": (3, 2)}, {"grad": [(3, 3), (6,)]}),
    "softmax": ("softmax", lambda x: canonical.softmax("softmax", 1, x), {"x": (3, 2)}, {}),
    "softmax_backward": ("softmax_backward", lambda y, grad: canonical.softmax("softmax", 1, y=y, grad=grad),
                         {"y": (3, 2), "grad": (3, 2)}, {"grad": [(3, 3), (4, 2)]}),
    "layer_norm": ("layer_norm", lambda x, weight, bias: canonical.layer_norm(x, 4, weight, bias, 1e-5),
                   {"x": (3, 4), "weight": (4,), "bias": (4,)},
                   {"x": [(3, 5)], "weight": [(5,), (8,)], "bias": [(5,)]}),
    "layer_norm_backward": (
        "layer_norm_backward", lambda x, grad, mean, rstd, weight: canonical.layer_norm_backward(
            x, 4, grad, mean, rstd, weight),
        {"x": (3, 4), "grad": (3, 4), "mean": (3,), "rstd": (3,), "weight": (4,)},
        {"x": [(3, 5)], "grad": [(4, 4)], "mean": [(4,)], "rstd": [(4,)], "weight": [(5,)]},
    ),
    "rms_norm": ("rms_norm", lambda x, weight: canonical.rms_norm(x, 4, weight, 1e-5), {"x": (3, 4), "weight": (4,)},
                 {"x": [(3, 5)], "weight": [(5,)]}),
    "rms_norm_backward": (
        "rms_norm_backward", lambda x, grad, rstd, weight: canonical.rms_norm_backward(x, 4, grad, rstd, weight),
        {"x": (3, 4), "grad": (3, 4), "rstd": (3,), "weight": (4,)},
        {"x": [(3, 5)], "grad": [(4, 4)], "rstd": [(4,)], "weight": [(5,)]},
    ),
    "channel_norm": (
        "channel_norm", canonical.channel_norm, {"x": (2, 4, 3), "mean": (4,), "gain": (4,), "bias": (4,)},
        {"mean": [(5,)], "gain": [(5,)], "bias": [(8,)]},
    ),
    "channel_norm_backward": (
        "channel_norm_backward", canonical.channel_norm_backward,
        {"x": (2, 4, 3), "grad": (2, 4, 3), **CHANNEL},
        {"grad": [(3, 4, 3)], **{name: [(5,)] for name in CHANNEL}},
    ),
    "scatter": ("scatter", lambda values, x: canonical.scatter(values, torch.tensor([0, 1]), 3, x),
                {"values": (2, 4), "x": (3, 4)}, {"values": [(3, 4)], "x": [(4, 4), (3, 5)]}),
    "running_sum": ("running_sum", lambda x: canonical.running_sum(x, 0), {"x": (3,)}, {}),
    "attention": (
        "attention", lambda q, k, v, bias: canonical.attention(q, k, v, canonical.Sight(), bias),
        {"q": (1, 2, 3, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 6), "bias": (3, 5)},
        {"q": [(2, 3, 4), (2, 2, 3, 4), (1, 2, 3, 5)], "k": [(1, 2, 4, 4), (1, 2, 5, 3)], "v": [(1, 2, 6, 6)],
         "bias": [(3, 4), (1, 1, 1, 3, 5)]},
    ),
    "attention_backward": (
        "attention_backward", lambda q, k, v, grad, top, total: canonical.attention_backward(
            grad, q, k, v, top, total, canonical.Sight()),
        {"q": (1, 2, 3, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 6), "grad": (1, 2, 3, 6), "top": (1, 2, 3),
         "total": (1, 2, 3)},
        {"k": [(1, 2, 5, 3)], "grad": [(1, 2, 3, 5)], "top": [(1, 2, 4)], "total": [(2, 3)]},
    ),
    "scan": (
        "scan", lambda read, key, value, decay, first: canonical.scan(
            read, key, value, decay, first, canonical.Reach()),
        {"read": (1, 2, 5, 3), "key": (1, 2, 5, 3), "value": (1, 2, 5, 4), "decay": (5, 1), "first": (1, 2, 3, 4)},
        {"read": [(2, 5, 3)], "key": [(1, 2, 5, 4)], "value": [(1, 2, 4, 4)], "decay": [(4, 1)],
         "first": [(1, 2, 4, 3)]},
    ),
    "scan_decay": (
        "scan_decay", lambda read, read_grad, key, key_grad, state, state_grad: canonical.scan_decay(
            read, read_grad, key, key_grad, state, state_grad, canonical.Reach()),
        {**dict.fromkeys(("read", "read_grad", "key", "key_grad"), (1, 2, 5, 3)), "state": (1, 2, 3, 4),
         "state_grad": (1, 2, 3, 4)},
        {"read_grad": [(1, 2, 5, 4)], "key": [(1, 2, 4, 3)], "key_grad": [(2, 5, 3)], "state": [(1, 2, 4, 4)],
         "state_grad": [(1, 2, 3, 5)]},
    ),
    "depthwise": ("depthwise", lambda u, w: canonical.depthwise(u, w, 5, 0), {"u": (2, 3, 5), "w": (3, 2)},
                  {"u": [(3, 5), (2, 4, 5)], "w": [(4, 2), (3,)]}),
    "depthwise_weight": ("depthwise", lambda grad, u: canonical.depthwise_weight(grad, u, 2, 0),
                         {"u": (2, 3, 5), "grad": (2, 3, 4)}, {"u": [(2, 4, 5)], "grad": [(1, 3, 4)]}),
    "sgd": ("sgd", _step("sgd"), {"param": (3, 2), "grad": (3, 2), "first": (3, 2)},
            {"grad": [(4, 2)], "first": [(4, 2)]}),
    "adam": ("adam", _step("adam"), {name: (3, 2) for name in ("param", "grad", "first", "second", "most")},
             {name: [(4, 2)] for name in ("grad", "first", "second", "most")}),
    "product sum": ("sum", _sum("product", "x", "b"), {"x": (3, 2), "b": (3, 2)}, {"b": [(3, 3)]}),
    "centred sum": ("sum", _sum("centred_square", "x", "mean"), {"x": (3, 2), "mean": (3,)}, {"mean": [(4,)]}),
    "normalised sum": (
        "sum", _sum("normalised", "x", "b", "mean", "rstd"), {"x": (3, 2), "b": (3, 2), "mean": (2,), "rstd": (2,)},
        {"b": [(3, 3)], "mean": [(3,)], "rstd": [(3,)]},
    ),
}  # fmt: skip
TENSORS = [(case, name) for case, (_, _, shapes, _) in CASES.items() for name in shapes]
WRONG_SHAPES = [
    (case, name, shape) for case, (*_, wrong) in CASES.items() for name, ss in wrong.items() for shape in ss
]


def tensors(case: str, **changed: Tensor) -> dict[str, Tensor]:
    return {name: changed.get(name, ones(*shape)) for name, shape in CASES[case][2].items()}


def refused(case: str, name: str, how: str, **changed: Tensor) -> None:
    kernel, call, *_ = CASES[case]
    # where two tensors differ in shape, the error may name either
    others = {"values": "index", "x": "grad", "mean": r"operand \d", "rstd": r"operand \d", "b": r"operand \d"}
    label = f"({name}|{others[name]})" if name in others else name
    with pytest.raises(OperandError, match=rf"^kernel {kernel}: (.*\b)?{label}\b.*{how}"):
        call(**tensors(case, **changed))


@pytest.mark.parametrize("case", CASES)
def test_the_cases_are_right_but_for_what_is_changed(case: str) -> None:
    CASES[case][1](**tensors(case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32], ids=str)
@pytest.mark.parametrize(("case", "name"), TENSORS)
def test_types(case: str, name: str, dtype: torch.dtype) -> None:
    refused(case, name, f"is {re.escape(str(dtype))}, want torch.float32", **{name: tensors(case)[name].to(dtype)})


@pytest.mark.parametrize(("case", "name"), TENSORS)
def test_devices(case: str, name: str) -> None:
    """One tensor elsewhere than the others; the first one's place is the kernel's."""
    names = list(CASES[case][2])
    if name == names[0]:
        if len(names) == 1:
            pytest.skip("there is no other tensor")
        refused(case, names[1], "is on cpu, want meta", **{name: tensors(case)[name].to("meta")})
    else:
        refused(case, name, "is on meta, want cpu", **{name: tensors(case)[name].to("meta")})


@pytest.mark.parametrize("case", CASES)
def test_a_device_without_kernels(case: str) -> None:
    kernel, call, *_ = CASES[case]
    moved = {name: t.to("meta") for name, t in tensors(case).items()}
    with pytest.raises(OperandError, match=rf"^kernel {kernel}: .*meta"):
        call(**moved)


@pytest.mark.parametrize(("case", "name", "shape"), WRONG_SHAPES)
def test_shapes(case: str, name: str, shape: tuple[int, ...]) -> None:
    refused(case, name, "", **{name: ones(*shape)})


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", ["convolution", "input_gradient", "weight_gradient"])
def test_convolutions_want_contiguous_tensors(kind: str, name: str) -> None:
    shape = IMAGES[name]
    refused(kind, name, "not contiguous", **{name: ones(*shape[:3], 2 * shape[3])[..., ::2]})


@pytest.mark.parametrize(("kernel", "name"), [("sgd", "param"), ("sgd", "first"), ("adam", "param"), ("adam", "first"),
                                              ("adam", "second"), ("adam", "most")])  # fmt: skip
def test_steps_in_place_want_contiguous_tensors(kernel: str, name: str) -> None:
    refused(kernel, name, "not contiguous", **{name: ones(2, 3).T})


@pytest.mark.parametrize("f", [
    lambda x: canonical.function("exp", x),
    lambda x: canonical.round_to(x, FLOAT32),
    lambda x: canonical.in_doubt(x, SCALE, 1.0, 0.0, FLOAT32),
    lambda x: canonical.sum_terms("value", [0], x),
], ids=["exp", "round", "doubt_count", "sum"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool], ids=str)
def test_kernels_of_float32_and_float64_take_nothing_else(f: Call, dtype: torch.dtype) -> None:
    with pytest.raises(OperandError, match=rf"^kernel \w+: [xy] is {re.escape(str(dtype))}, want .*32 or .*64"):
        f(ones(6).to(dtype))


@pytest.mark.parametrize("kind", ["square", "centred_square", "product", "centred_product", "normalised"])
def test_sums_of_other_terms_take_float32_only(kind: str) -> None:
    with pytest.raises(OperandError, match=r"^kernel sum: x is torch.float64, want torch.float32"):
        canonical.sum_terms(kind, [0], ones(3).double(), ones(3), ones(1), ones(3))


# ---- indices --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", [[0, 3], [-1, 0], [2**40, 0]], ids=str)
def test_scatter_indices_out_of_range(index: list[int]) -> None:
    with pytest.raises(OperandError, match=f"^kernel scatter: index from {min(index)} to {max(index)}, want 0 to 2"):
        canonical.scatter(ones(2, 4), torch.tensor(index), 3)


@pytest.mark.parametrize("index", [torch.tensor([0, 1, 2]), torch.tensor([0]), torch.tensor([[0, 1]]),
                                   torch.tensor([0.0, 1.0]), torch.tensor([0, 1], dtype=torch.int32)],
                         ids=str)  # fmt: skip
def test_scatter_indices_of_the_wrong_number_or_type(index: Tensor) -> None:
    with pytest.raises(OperandError, match=r"^kernel scatter: index"):
        canonical.scatter(ones(2, 4), index, 3)


# ---- arguments as bytes ---------------------------------------------------------------------------------------------
RUNNING = (ones(6), torch.ones(6, dtype=torch.float64), 1, 6, 1)


def test_the_right_arguments_pass() -> None:
    launch.launch("running_sum", *RUNNING)
    assert RUNNING[1].tolist() == [1, 2, 3, 4, 5, 6]
    assert len(launch.packed("running_sum", RUNNING)) == 8 * len(launch.SIGNATURES["running_sum"])


def test_the_number_of_arguments() -> None:
    for some in (RUNNING[:-1], (*RUNNING, 1), ()):
        with pytest.raises(OperandError, match=f"^kernel running_sum: {len(some)} arguments, want 5"):
            launch.packed("running_sum", some)


@pytest.mark.parametrize(("at", "wrong"), [(0, 3), (0, 1.5), (1, "x"), (2, ones(1)), (2, None), (3, 1.5), (4, "1")])
def test_the_kinds_of_arguments(at: int, wrong: object) -> None:
    arguments = (*RUNNING[:at], wrong, *RUNNING[at + 1 :])
    what = f"^kernel running_sum: argument {at} is {type(wrong).__name__}, want kind '[pi]'"
    with pytest.raises(OperandError, match=what):
        launch.packed("running_sum", arguments)  # type: ignore[arg-type]


def test_a_real_argument_takes_numbers_alone() -> None:
    good = (*[None] * 6, 1, 1, 0.5)
    assert launch.packed("scatter", good) != launch.packed("scatter", (*good[:-1], 2))
    for wrong in (None, ones(1), "1"):
        with pytest.raises(OperandError, match=r"^kernel scatter: argument 8 is .*, want kind 'd'"):
            launch.packed("scatter", (*good[:-1], wrong))  # type: ignore[arg-type]


def test_the_size_of_the_bytes() -> None:
    """The last line before C++: every kernel, one byte more and one less."""
    for number, (name, size) in enumerate(_host.kernels()):
        for wrong in (0, size - 1, size + 1, 2 * size):
            with pytest.raises(ValueError, match=f"^{name}: wrong size of arguments"):
                _host.launch(number, bytes(wrong), 1)
    with pytest.raises(ValueError, match="no such kernel"):
        _host.launch(len(_host.kernels()), b"", 1)


def test_an_extension_of_another_version_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.check_signatures()
    monkeypatch.setitem(launch.SIGNATURES, "scatter", launch.SIGNATURES["running_sum"])
    with pytest.raises(OperandError, match=r"^kernels scatter: the compiled extension is of another version"):
        launch.check_signatures()
    monkeypatch.undo()
    monkeypatch.delitem(launch.SIGNATURES, "sgd")
    with pytest.raises(OperandError, match=r"^kernels sgd:"):
        launch.check_signatures()


PATCHES = (2, 3, 5, 5, 3, 3, 1, 1, 1, 1, 1, 1, 5, 5)


@pytest.mark.parametrize("which", ["x", "cols", "x strides", "geometry", "overflow"])
def test_columns_are_as_long_as_the_geometry_says(which: str) -> None:
    x, cols, geometry = ones(2, 3, 5, 5), ones(27, 50), PATCHES
    kernels.to_columns(x, cols, geometry)
    kernels.from_columns(cols, x, geometry)
    if which == "x":
        x = ones(2, 3, 5, 4)
    elif which == "cols":
        cols = ones(27, 49)
    elif which == "x strides":
        x = ones(2, 3, 5, 10)[..., ::2]
    else:
        geometry = (*PATCHES[:-2], 5, -5) if which == "geometry" else (*PATCHES[:6], 1 << 62, *PATCHES[7:])
    for call in (lambda: kernels.to_columns(x, cols, geometry), lambda: kernels.from_columns(cols, x, geometry)):
        with pytest.raises(ValueError, match=r"want|none|beyond"):
            call()
    if which != "cols":
        with pytest.raises(ValueError, match=r"want|none|beyond"):
            kernels.tap_squares(x, geometry)


@pytest.mark.parametrize("vector", ["row", "col", "bias", "full"])
def test_a_scale_s_vectors_are_as_long_as_its_shape_says(vector: str) -> None:
    lengths = {"row": 6, "col": 8, "bias": 4, "full": 24}
    right = torch.ones(lengths[vector], dtype=torch.float64)
    for wrong in (right[1:], torch.cat([right, right])[::2], right.float()):
        kernels.scale_key(Scale("test", 1, 1.0, (2, 3, 4), **{vector: right}), 0.0, 0.0)
        with pytest.raises(ValueError, match="a vector"):
            kernels.scale_key(Scale("test", 1, 1.0, (2, 3, 4), **{vector: wrong}), 0.0, 0.0)
