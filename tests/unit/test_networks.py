"""Promises of the networks of one modality."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micu.base.errors import ShapeError
from micu.config.sections import EncoderConfig, ReconstructionConfig
from micu.model.networks import (
    FRONTS,
    GridPool,
    Reconstructor,
    ResidualBlock,
    SemanticEncoder,
    SpecificEncoder,
    TransformerLayer,
    WordReader,
    check_step_shape,
)
from micu.store.manifest import MODALITIES

SMALL = EncoderConfig(embed_dim=8, heads=2, feedforward_dim=12, text_hidden_dim=3, dropout=0.0)
WIDTHS = ReconstructionConfig(grid_width=6, vector_width=5)


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def library_layer(ours: TransformerLayer, dropout: float = 0.0) -> nn.TransformerEncoderLayer:
    """torch's own post-norm layer with our weights."""
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=dropout, batch_first=True, dtype=torch.float64
    )
    pairs = {
        "self_attn.in_proj_": "attention_in.",
        "self_attn.out_proj.": "attention_out.",
        "linear1.": "feedforward_in.",
        "linear2.": "feedforward_out.",
        "norm1.": "attention_norm.",
        "norm2.": "feedforward_norm.",
    }
    state = ours.state_dict()
    layer.load_state_dict(
        {f"{a}{leaf}": state[f"{b}{leaf}"] for a, b in pairs.items() for leaf in ("weight", "bias")}
    )
    return layer


@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_layer_is_torchs_post_norm_layer(masked: bool) -> None:
    layer = TransformerLayer(SMALL).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = randn(3, 5, 8)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = mask[2, 0] = not masked
    theirs = library_layer(layer)(x, src_key_padding_mask=~mask)
    ours = layer.transform(x, mask if masked else None)
    assert torch.allclose(ours[mask], theirs[mask], atol=1e-12)


def test_dropout_falls_where_torchs_layer_has_it() -> None:
    config = EncoderConfig(embed_dim=8, heads=2, feedforward_dim=12, dropout=0.3)
    layer, x = TransformerLayer(config).double(), randn(1, 50, 8)
    library = library_layer(layer, 0.3)
    torch.manual_seed(7)
    ours = layer.transform(x, None)
    torch.manual_seed(7)
    assert torch.allclose(ours, library(x), atol=1e-12)


def test_attention_starts_as_published() -> None:
    layer = TransformerLayer(EncoderConfig())
    bound = (6 / (256 + 768)) ** 0.5
    assert layer.attention_in.weight.abs().max() <= bound
    assert layer.attention_in.weight.abs().max() > 0.99 * bound
    assert not layer.attention_in.bias.any()
    assert not layer.attention_out.bias.any()


def test_the_encoder_knows_no_position() -> None:
    encoder = SemanticEncoder((4,), False, SMALL).double()
    x, order = randn(2, 6, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(encoder.encode(x)[:, order], encoder.encode(x[:, order]), atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_masked_steps_do_not_touch_real_ones(shape: tuple[int, ...]) -> None:
    encoder = SemanticEncoder(shape, True, SMALL).double()
    x = randn(2, 6, *shape)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    x[:, 4:] = 1e3
    assert torch.allclose(encoder.encode(x, mask)[:, :4], encoder.encode(x[:, :4]), atol=1e-12)


def test_a_clip_without_a_real_step_stays_finite() -> None:
    encoder = SemanticEncoder((4,), False, SMALL).double()
    mask = torch.tensor([[True] * 3, [False] * 3])
    out = encoder.encode(randn(2, 3, 4), mask)
    out[mask].sum().backward()  # type: ignore[no-untyped-call]
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("real", [[1, 1, 1, 0, 0], [0, 1, 1, 0, 1]])
def test_the_word_reader_skips_masked_words_wherever_they_stand(real: list[int]) -> None:
    reader = WordReader(3, 2).double()
    words = randn(2, 5, 3)
    mask = torch.tensor([[1] * 5, real], dtype=torch.bool)
    out = reader.read(words, mask)
    alone = reader.read(words[1:, mask[1]])
    assert torch.allclose(out[1, mask[1]], alone[0], atol=1e-12)
    assert torch.allclose(out[:1], reader.read(words[:1]), atol=1e-12)
    assert not out[1, ~mask[1]].any()


def test_a_text_without_a_real_word_reads_as_zeros() -> None:
    reader = WordReader(3, 2)
    mask = torch.tensor([[True, False], [False, False]])
    assert not reader.read(torch.randn(2, 2, 3), mask)[1].any()


def pooled_by_loop(pool: GridPool, x: Tensor) -> Tensor:
    """Sum of the gated cells, one cell at a time."""
    out = torch.zeros(*x.shape[:2], x.shape[-1], dtype=x.dtype)
    for b, frames in enumerate(x):
        for t, frame in enumerate(frames):
            cells = frame.flatten(0, 1)
            gate = torch.sigmoid(
                pool.excite.weight @ torch.relu(pool.squeeze.weight @ cells.mean(0))
            )
            for cell in cells:
                out[b, t] += cell * (1 + gate)
    return out


def test_pooling_sums_the_gated_cells() -> None:
    pool = GridPool((2, 3, 16), 5, "sum").double()
    x = randn(2, 3, 2, 3, 16)
    assert torch.allclose(pool.pool(x), pooled_by_loop(pool, x), atol=1e-12)
    assert pool.squeeze.out_features == 16 // 8


@pytest.mark.parametrize("spatial", ["sum", "softmax"])
def test_a_vector_is_the_grid_of_one_cell(spatial: str) -> None:
    grid = GridPool((1, 1, 16), 5, spatial).double()  # type: ignore[arg-type]
    vector = GridPool((16,), 5, spatial).double()  # type: ignore[arg-type]
    vector.load_state_dict(grid.state_dict(), strict=False)
    x = randn(2, 3, 16)
    assert torch.allclose(vector.pool(x), grid.pool(x[:, :, None, None]), atol=1e-12)


def test_softmax_pooling_weighs_cells_as_meant() -> None:
    pool = GridPool((2, 2, 8), 5, "softmax").double()
    x = randn(1, 1, 2, 2, 8)
    cells = x.flatten(2, 3)[0, 0]
    mean = cells.mean(0)
    gated = cells * (1 + torch.sigmoid(pool.excite(torch.relu(pool.squeeze(mean)))))
    scores = [
        torch.tanh(pool.score(torch.relu(pool.cell(y)) * torch.relu(pool.context(mean))))
        for y in gated
    ]
    weights = torch.softmax(torch.cat(scores), 0)
    assert torch.allclose(pool.pool(x)[0, 0], (weights[:, None] * gated).sum(0), atol=1e-12)


def test_every_modality_has_a_front() -> None:
    assert set(FRONTS) == set(MODALITIES)


@pytest.mark.parametrize(
    ("modality", "shape"), [("audio", (4, 4, 8)), ("text", (2, 2, 8)), ("video", (7, 8))]
)
def test_step_shapes_that_nothing_can_read_are_refused(
    modality: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeError, match=f"{modality} features: expected .* per step, got"):
        check_step_shape(modality, shape)


def test_the_skip_path_of_a_residual_block_carries_the_rectified_input() -> None:
    block = ResidualBlock(3)
    nn.init.zeros_(block.outer.weight)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), F.relu(x))


@pytest.mark.parametrize(
    ("shape", "specific_shape"),
    [((9,), (5,)), ((7, 7, 9), (3, 3, 6)), ((5, 8, 9), (1, 4, 6)), ((4, 7, 3), (5,))],
)
def test_features_of_any_shape_are_rebuilt_in_it(
    shape: tuple[int, ...], specific_shape: tuple[int, ...]
) -> None:
    encoder, reconstructor = SpecificEncoder(shape, WIDTHS), Reconstructor(shape, 8, WIDTHS)
    x, code = torch.randn(2, 3, *shape), torch.randn(2, 3, 8, requires_grad=True)
    specific = encoder.encode(x)
    rebuilt = reconstructor.reconstruct(code, specific)
    assert specific.shape == (2, 3, *specific_shape)
    assert rebuilt.shape == x.shape
    rebuilt.square().sum().backward()  # type: ignore[no-untyped-call]
    assert code.grad is not None
    assert code.grad.any()
    modules: tuple[nn.Module, ...] = (encoder, reconstructor)
    assert all(p.grad is not None for module in modules for p in module.parameters())


@pytest.mark.parametrize("shape", [(4,), (6, 5, 4)])
def test_a_step_is_rebuilt_from_itself_alone(shape: tuple[int, ...]) -> None:
    encoder, reconstructor = SpecificEncoder(shape, WIDTHS), Reconstructor(shape, 8, WIDTHS)
    encoder, reconstructor = encoder.double(), reconstructor.double()
    x, code = randn(2, 3, *shape), randn(2, 3, 8)
    whole = reconstructor.reconstruct(code, encoder.encode(x))
    alone = reconstructor.reconstruct(code[1:, 2:], encoder.encode(x[1:, 2:]))
    assert torch.allclose(whole[1:, 2:], alone, atol=1e-12)


def test_layers_start_alike_only_when_told_to() -> None:
    cloned = SemanticEncoder((4,), False, EncoderConfig(clone_init=True))
    independent = SemanticEncoder((4,), False, EncoderConfig())
    for encoder, alike in ((cloned, True), (independent, False)):
        first, second = (layer.state_dict()["attention_in.weight"] for layer in encoder.layers)
        assert torch.equal(first, second) is alike
    one, two = (dict(layer.named_parameters()) for layer in cloned.layers)
    assert not {id(p) for p in one.values()} & {id(p) for p in two.values()}


def test_dropout_works_in_training_only() -> None:
    encoder = SemanticEncoder((4,), False, EncoderConfig(embed_dim=8, heads=2, dropout=0.5))
    x = torch.randn(1, 3, 4)
    assert not torch.equal(encoder.encode(x), encoder.encode(x))
    encoder.eval()
    assert torch.equal(encoder.encode(x), encoder.encode(x))
