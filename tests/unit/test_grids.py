"""Convolutions by few products against torch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from micu.model import grids
from micu.model.grids import GridConv, GridConvTranspose, grid_algorithm
from micu.model.onednn import Linear, has_onednn, linear, product

LAYERS = {
    "valid": lambda: GridConv(6, 5, 3),
    "same": lambda: GridConv(6, 5, 3, padding=1, bias=False),
    "point": lambda: GridConv(6, 5, 1),
    "full": lambda: GridConvTranspose(6, 5, 3),
    "full point": lambda: GridConvTranspose(6, 5, 1),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def library(layer: nn.Module) -> nn.Module:
    """The same layer as torch's own class."""
    plain = nn.Conv2d if isinstance(layer, GridConv) else nn.ConvTranspose2d
    other = copy.deepcopy(layer)
    other.__class__ = plain
    return other


def outcome(layer: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Output, and gradients of input and parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    grads = torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])
    return [out.detach(), *grads]


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (7, 7), (4, 6), (14, 9)])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
def test_values_and_gradients_are_those_of_torchs_layer(
    kind: str, size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    layer = LAYERS[kind]().double()
    x = torch.randn(4, 6, *size, dtype=torch.float64)
    plain = library(layer)
    weight = torch.randn_like(plain(x))
    expected = outcome(plain, x, weight)
    got = outcome(layer.to(dtype), x.to(dtype), weight.to(dtype))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize(
    ("kind", "size", "rank", "direct"),
    [
        ("valid", 7, 49, 225),
        ("valid", 5, 25, 81),
        ("same", 3, 25, 81),
        ("same", 5, 49, 225),
        ("full", 3, 25, 81),
        ("full", 5, 49, 225),
    ],
)
def test_the_published_grids_take_fewer_products_than_pairs_of_cell_and_tap(
    kind: grids.Kind, size: int, rank: int, direct: int
) -> None:
    enter, weigh, leave = grid_algorithm(kind, size, size, torch.float64)
    cells = {"valid": size - 2, "same": size, "full": size + 2}[kind] ** 2
    assert enter.shape == (rank, size**2)
    assert weigh.shape == (rank, 9)
    assert leave.shape == (cells, rank)
    assert rank < direct


def test_weights_are_those_of_torchs_layers_by_name_and_shape() -> None:
    for make in LAYERS.values():
        layer = make()
        ours = {name: p.shape for name, p in layer.state_dict().items()}
        assert ours == {name: p.shape for name, p in library(layer).state_dict().items()}


def test_under_autocast_torch_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LAYERS["same"](), torch.randn(2, 6, 3, 3)
    monkeypatch.setattr(grids, "_convolve", None)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert torch.equal(out, library(layer)(x))
    assert out.dtype == torch.bfloat16


def test_what_needs_no_gradient_gets_none() -> None:
    layer, x = LAYERS["valid"](), torch.randn(2, 6, 5, 5)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_torchs_in_any_layout(dtype: torch.dtype, layout: str) -> None:
    left, right = torch.randn(7, 5, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    if layout == "transposed":
        left, right = left.T.contiguous().T, right.T.contiguous().T
    torch.testing.assert_close(product(left, right), torch.mm(left, right))


@pytest.mark.parametrize(("rows", "width"), [(0, 4), (3, 0)])
def test_products_of_nothing_are_torchs(rows: int, width: int) -> None:
    left, right = torch.randn(rows, width), torch.randn(width, 2)
    assert torch.equal(product(left, right), left @ right)
    assert linear(left, right.T).shape == (rows, 2)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    layer, x = LAYERS["valid"](), torch.randn(2, 6, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_onednn_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    has_onednn.cache_clear()
    monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    try:
        assert not has_onednn()
        assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    finally:
        has_onednn.cache_clear()


def test_the_gradient_of_a_linear_map_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("micu.model.onednn._is_ours", lambda x: True)
    monkeypatch.setattr("micu.model.onednn.product", lambda x, y, bias=0: x @ y + bias)
    inputs = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in SHAPES]
    assert torch.autograd.gradcheck(linear, inputs)


SHAPES = ((2, 3, 4), (5, 4), (5,))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_torchs_forwards_and_back(bias: bool) -> None:
    torch.manual_seed(0)
    ours, x = Linear(40, 24, bias=bias), torch.randn(3, 5, 40, requires_grad=True)
    theirs = nn.Linear(40, 24, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
        layer.seen, x.grad = x.grad, None  # type: ignore[assignment]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.seen, theirs.seen, rtol=1e-4, atol=1e-4)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)
