"""The losses' common contract, their draws, and their weighted sum."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from micu.base.errors import ConfigError
from micu.config.sections import (
    BaselinesConfig,
    ContrastiveConfig,
    DataConfig,
    EncoderConfig,
    JigsawConfig,
    LossWeights,
    MmjpConfig,
    QuantizerConfig,
    ReconstructionConfig,
    TrainConfig,
    TransportConfig,
)
from micu.data.dataset import Batch
from micu.losses import (
    LOSSES,
    Draws,
    Loss,
    Losses,
    LossTerms,
    compute_terms,
    derive_seed,
    draw,
    weigh,
)
from micu.losses.autoencoder import masked_mse
from micu.losses.terms import SHOWN_CLIPS, not_finite
from micu.model.micu import MICU, MICUOutput
from micu.model.quantizer import Quantized

B, T, D, K = 3, 4, 8, 7
WIDTH = 6
MODALITIES = ("audio", "video", "text")
CONFIG = TrainConfig(
    encoder=EncoderConfig(embed_dim=D, heads=2, feedforward_dim=8, dropout=0.0, text_hidden_dim=4),
    quantizer=QuantizerConfig(codebook_size=K, learning="gradient", reset="off", pool=True),
    reconstruction=ReconstructionConfig(vector_width=WIDTH),
    contrastive=ContrastiveConfig(tau=0.5),
    jigsaw=JigsawConfig(splits=4, permutations=5, hidden_dim=6),
    mmjp=MmjpConfig(splits=2, permutations=7, hidden_dim=6),
    weights=LossWeights(
        mmjp=1.0, club=1.0, cpc=1.0, code_matching=0.5, self_cross=0.1, one_way=0.1, transport=1.0
    ),
    data=DataConfig(steps=T),
    baselines=BaselinesConfig(transport=TransportConfig(queue_size=5, iterations=3)),
)
OF_STEPS = [name for name in LOSSES if name != "clip_club"]
"""What can be in one run; FCID's is of clips, and tested in `test_fcid`."""
WITHOUT_TRANSPORT = replace(
    CONFIG,
    quantizer=replace(CONFIG.quantizer, learning="average"),
    weights=replace(CONFIG.weights, transport=None),
    baselines=BaselinesConfig(),
)
WITH = {
    "as the default": CONFIG,
    "feature mask, dot product, mean over pairs, rows": replace(
        CONFIG,
        contrastive=ContrastiveConfig(
            tau=2.0,
            normalize=False,
            mask_axis="feature",
            mask_share="independent",
            pair_reduction="mean",
        ),
        jigsaw=replace(CONFIG.jigsaw, block_draw="row"),
    ),
    "sampled labels": replace(CONFIG, jigsaw=replace(CONFIG.jigsaw, labels="sampled")),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def batch(lengths: tuple[int, ...] = (T,) * B) -> Batch:
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    ids = tuple(f"clip{i}" for i in range(len(lengths)))
    features = {name: numbers(len(lengths), T, D, seed=5) for name in MODALITIES}
    return Batch(features, mask, ids, ("",) * len(lengths))


def output(semantic: Tensor, rebuilt: Tensor, order: tuple[str, ...] = MODALITIES) -> MICUOutput:
    """A forward pass whose codes and commitment are functions of `semantic`, (M, B, T, D)."""
    of = dict(zip(MODALITIES, zip(semantic, rebuilt, strict=True), strict=True))
    codes = torch.zeros(B, T, dtype=torch.int64)

    def entry(x: Tensor) -> Quantized:
        return Quantized(x, x.sin(), codes, x[0].square().mean(), codes)

    quantized = {name: entry(of[name][0]) for name in order}
    pooled = {name: entry(of[name][0][:, :1].cos()) for name in order}
    target = {name: numbers(B, T, D, seed=9) for name in order}
    rebuilt_of = {name: of[name][1] for name in order}
    specific = {name: of[name][1][..., :WIDTH].cos() for name in order}
    codebook = numbers(K, D, seed=8)
    return MICUOutput(quantized, rebuilt_of, target, specific, pooled, codebook)


def inputs() -> tuple[Tensor, Tensor]:
    return numbers(3, B, T, D).requires_grad_(), numbers(3, B, T, D, seed=1).requires_grad_()


def losses_of(config: TrainConfig) -> Losses:
    torch.manual_seed(0)
    losses = Losses(config)
    losses.start_(MICU(config, dict.fromkeys(config.modalities, (D,))), steps=10)
    return losses.double()


def the_draws(config: TrainConfig, step: int = 0, batch_size: int = B) -> Draws:
    return draw(config, batch_size, T, seed=config.seed, step=step, device="cpu")


@pytest.fixture(params=itertools.product(OF_STEPS, WITH), ids=lambda p: " ".join(p))
def case(request: pytest.FixtureRequest) -> tuple[Loss, TrainConfig]:
    name, config = request.param[0], WITH[request.param[1]]
    return getattr(losses_of(config), name), config


def test_the_losses_of_a_run_are_those_of_equation_8_unless_others_are_asked_for() -> None:
    names = ["fine", "coarse", "jigsaw", "reconstruction", "commitment"]
    assert [name for name, _ in Losses(TrainConfig()).named_children()] == names
    weights = [field.name for field in fields(LossWeights) if field.name != "plugins"]
    assert sorted(LOSSES) == sorted(weights)
    made = [name for name, _ in Losses(CONFIG).named_children()]
    assert made == [name for name in weights if name in OF_STEPS]


def test_every_loss_is_one_finite_number_whose_gradient_is_that_of_finite_differences(
    case: tuple[Loss, TrainConfig],
) -> None:
    loss, config = case
    drawn = the_draws(config)

    def value(semantic: Tensor, rebuilt: Tensor) -> Tensor:
        return loss.compute(output(semantic, rebuilt), batch((4, 2, 3)), drawn)

    got = value(*inputs())
    assert got.shape == ()
    assert got.isfinite()
    assert got.requires_grad
    assert torch.autograd.gradcheck(value, inputs(), fast_mode=True)


def test_the_order_of_the_modalities_in_the_output_changes_no_loss(
    case: tuple[Loss, TrainConfig],
) -> None:
    loss, config = case
    drawn = the_draws(config)
    forwards = loss.compute(output(*inputs()), batch(), drawn)
    shuffled = output(*inputs(), order=("text", "audio", "video"))
    assert torch.equal(forwards, loss.compute(shuffled, batch(), drawn))


def test_no_loss_looks_at_padded_steps(case: tuple[Loss, TrainConfig]) -> None:
    loss, config = case
    if type(loss) is LOSSES["commitment"]:
        return  # the quantizer masks it, and this file's stand-in does not
    drawn, padded = the_draws(config), batch((4, 2, 3))
    semantic, rebuilt = (x.detach() for x in inputs())
    real = padded.mask[None, ..., None]
    calm = loss.compute(output(semantic, rebuilt), padded, drawn)
    wild = output(semantic.where(real, 50.0), rebuilt.where(real, -50.0))
    wild = replace(wild, pooled=output(semantic, rebuilt).pooled)
    features = {name: x.where(real[0], 50.0) for name, x in padded.features.items()}
    torch.testing.assert_close(loss.compute(wild, replace(padded, features=features), drawn), calm)


def test_the_pair_reduction_sums_or_averages_over_the_ordered_pairs() -> None:
    mean = replace(CONFIG, contrastive=replace(CONFIG.contrastive, pair_reduction="mean"))
    drawn = the_draws(CONFIG)
    for name in ("fine", "coarse"):
        summed, averaged = (
            getattr(losses_of(config), name).compute(output(*inputs()), batch(), drawn)
            for config in (CONFIG, mean)
        )
        assert summed.item() == pytest.approx(9 * averaged.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["fine", "coarse"])
def test_both_contrastive_losses_follow_every_setting(name: str) -> None:
    drawn = the_draws(CONFIG)

    def value(**changes: object) -> float:
        settings = replace(CONFIG.contrastive, **changes)  # type: ignore[arg-type]
        loss = getattr(losses_of(replace(CONFIG, contrastive=settings)), name)
        return loss.compute(output(*inputs()), batch(), drawn).item()

    values = [value(), value(normalize=False), value(tau=0.1), value(tau=0.1, normalize=False)]
    assert len(set(values)) == 4
    assert name == "fine" or values[1] == pytest.approx(expected_coarse(drawn), rel=1e-12)


def expected_coarse(drawn: Draws) -> float:
    """The coarse loss of a dot product, sum over the ordered pairs, by the formula."""
    semantic = inputs()[0].detach()
    masked = (semantic * drawn.keep[None, ..., None]).mean(2)
    total = 0.0
    for queries, keys in itertools.product(masked, semantic.mean(2)):
        logits = queries @ keys.T / CONFIG.contrastive.tau
        total += torch.nn.functional.cross_entropy(logits, torch.arange(B)).item()
    return total


def test_masked_error_is_the_mean_over_the_elements_of_real_steps() -> None:
    x, target, mask = numbers(B, T, 2, 2, 3), numbers(B, T, 2, 2, 3, seed=1), batch((4, 1, 0)).mask
    expected = torch.nn.functional.mse_loss(x[mask], target[mask])
    torch.testing.assert_close(masked_mse(x, target, mask), expected)
    everything = masked_mse(x, target, mask | True)
    torch.testing.assert_close(everything, torch.nn.functional.mse_loss(x, target))
    assert masked_mse(x, target, mask & False).item() == 0


def whole_loss(output: MICUOutput, batch: Batch, losses: Losses, draws: Draws) -> LossTerms:
    return weigh(compute_terms(output, batch, losses, draws), losses.config.weights)


def test_reconstruction_and_commitment_are_sums_over_the_modalities() -> None:
    semantic, rebuilt = inputs()
    out = output(semantic, rebuilt)
    terms = whole_loss(out, batch(), losses_of(CONFIG), the_draws(CONFIG)).terms
    pairs = [(out.reconstruction[name], out.target[name]) for name in MODALITIES]
    expected = sum(torch.nn.functional.mse_loss(*pair).item() for pair in pairs)
    assert terms["reconstruction"].item() == pytest.approx(expected, rel=1e-12)
    entries = (*out.quantized.values(), *out.pooled.values())
    expected = sum(entry.commitment_loss.item() for entry in entries)
    assert terms["commitment"].item() == pytest.approx(expected, rel=1e-12)


def test_the_total_is_the_sum_of_the_terms_times_their_weights() -> None:
    weights = LossWeights(**{name: 0.5 + i for i, name in enumerate(OF_STEPS)})
    losses = losses_of(replace(CONFIG, weights=weights))
    loss = whole_loss(output(*inputs()), batch(), losses, the_draws(CONFIG))
    expected = sum(getattr(weights, name) * term.item() for name, term in loss.terms.items())
    assert loss.total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in OF_STEPS if name != "transport"])  # refused
def test_a_loss_of_weight_zero_is_logged_without_a_graph(name: str) -> None:
    config = replace(CONFIG, weights=replace(CONFIG.weights, **{name: 0.0}))
    drawn = the_draws(CONFIG)
    whole = whole_loss(output(*inputs()), batch(), losses_of(CONFIG), drawn)
    loss = whole_loss(output(*inputs()), batch(), losses_of(config), drawn)
    assert not loss.terms[name].requires_grad
    torch.testing.assert_close(loss.terms[name], whole.terms[name].detach())
    rest = whole.total - getattr(CONFIG.weights, name) * whole.terms[name]
    torch.testing.assert_close(loss.total, rest)


@pytest.mark.parametrize("name", OF_STEPS)
def test_a_loss_that_is_left_out_is_not_even_made(name: str) -> None:
    gone = {name, "club"} if name == "reconstruction" else {name}  # which needs what is rebuilt
    weights = replace(CONFIG.weights, **dict.fromkeys(gone))
    quantizer = replace(CONFIG.quantizer, pool=name != "self_cross")
    changed = {"weights": weights, "quantizer": quantizer}
    config = WITHOUT_TRANSPORT if name == "transport" else replace(CONFIG, **changed)
    drawn = the_draws(CONFIG)
    losses = losses_of(config)
    loss = whole_loss(output(*inputs()), batch(), losses, drawn)
    assert name not in loss.terms
    assert not [key for key in losses.state_dict() if key.startswith(f"{name}.")]
    whole = whole_loss(output(*inputs()), batch(), losses_of(CONFIG), drawn)
    assert loss.terms.keys() == whole.terms.keys() - gone
    for key in {"fine", "coarse", "reconstruction", "commitment"} - {name}:
        torch.testing.assert_close(loss.terms[key], whole.terms[key])


def test_no_splits_are_no_jigsaw() -> None:
    config = replace(CONFIG, jigsaw=JigsawConfig(splits=0))
    loss = whole_loss(output(*inputs()), batch(), losses_of(config), the_draws(config))
    assert "jigsaw" not in loss.terms


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_clips(bad: str) -> None:
    terms = {"fine": torch.tensor(1.0), "jigsaw": torch.tensor(float(bad))}
    loss = weigh(terms, LossWeights())
    message = not_finite(1207, loss.nonfinite(), [f"clip{i}" for i in range(SHOWN_CLIPS + 12)])
    assert message.startswith(f"step 1207: loss 'jigsaw' is {bad}")
    assert "'fine'" not in message
    assert "'total'" not in message
    assert "(batch clips: clip0, clip1, clip2" in message
    assert f"clip{SHOWN_CLIPS - 1} and 12 more)" in message
    assert "stopped before the optimizer step" in message


def test_a_sum_that_overflows_is_named() -> None:
    loss = LossTerms(torch.tensor(torch.inf), {"fine": torch.tensor(2.0)})
    assert loss.nonfinite() == ["loss 'total' is inf"]


def test_finite_losses_pass() -> None:
    assert LossTerms(torch.tensor(2.0), {"fine": torch.tensor(2.0)}).nonfinite() == []


def test_a_registered_loss_without_a_weight_says_where_to_add_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOSSES._entries, "other", LOSSES["fine"])
    with pytest.raises(ConfigError, match=r"weights\.other: .*LossWeights in .*sections\.py"):
        Losses(CONFIG)


def test_the_permutation_table_is_saved_with_the_classifier_and_drawn_from_the_seed() -> None:
    state = losses_of(CONFIG).state_dict()
    assert {"jigsaw.permutations", "jigsaw.classifier.hidden.weight"} <= set(state)
    assert state["jigsaw.permutations"].shape == (5, 4)
    again = losses_of(CONFIG).state_dict()["jigsaw.permutations"]
    assert torch.equal(state["jigsaw.permutations"], again)
    other = losses_of(replace(CONFIG, seed=1)).state_dict()["jigsaw.permutations"]
    assert not torch.equal(state["jigsaw.permutations"], other)


def test_the_jigsaw_takes_its_blocks_from_the_codes_not_from_the_embeddings() -> None:
    semantic, rebuilt = inputs()
    out = output(semantic, rebuilt)
    changed = replace(
        out, quantized={k: replace(q, semantic=q.semantic + 1) for k, q in out.quantized.items()}
    )
    losses, drawn = losses_of(CONFIG), the_draws(CONFIG)
    first, second = (whole_loss(x, batch(), losses, drawn).terms for x in (out, changed))
    assert torch.equal(first["jigsaw"], second["jigsaw"])
    assert not torch.equal(first["fine"], second["fine"])


def test_draws_are_a_pure_function_of_seed_and_step() -> None:
    first = draw(CONFIG, 40, T, seed=1, step=2, device="cpu")
    torch.rand(7)
    again = draw(CONFIG, 40, T, seed=1, step=2, device="cpu")
    assert torch.equal(first.keep, again.keep)
    assert torch.equal(first.block_modality, again.block_modality)
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        other = draw(CONFIG, 40, T, seed=seed, step=step, device="cpu")
        assert not torch.equal(first.keep, other.keep)


def test_labels_are_drawn_when_sampled_and_change_no_other_draw() -> None:
    config = replace(CONFIG, jigsaw=replace(CONFIG.jigsaw, labels="sampled"))
    plain = draw(CONFIG, 500, T, seed=1, step=2, device="cpu")
    first, again, next_ = (draw(config, 500, T, seed=1, step=s, device="cpu") for s in (2, 2, 3))
    assert plain.labels is None
    assert first.labels is not None
    assert again.labels is not None
    assert next_.labels is not None
    assert torch.equal(plain.keep, first.keep)
    assert torch.equal(plain.block_modality, first.block_modality)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, next_.labels)
    shares = torch.bincount(first.labels, minlength=5) / len(first.labels)
    assert first.labels.shape == (500 * T,)
    assert (shares - 1 / 5).abs().max() < 0.05


def test_draws_have_the_configured_shapes_and_shares() -> None:
    first, second, _ = (
        draw(config, 500, T, seed=0, step=0, device="cpu") for config in WITH.values()
    )
    assert (first.keep.shape, first.block_modality.shape) == ((500, T), (4,))
    assert (second.keep.shape, second.block_modality.shape) == ((3, 500, D), (500 * T, 4))
    assert first.keep.dtype == torch.bool
    for drawn in (first, second):
        assert drawn.keep.double().mean().item() == pytest.approx(0.7, abs=0.04)
    shares = torch.bincount(second.block_modality.flatten(), minlength=3) / (500 * T * 4)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_modalities_share_one_mask_or_have_one_each() -> None:
    apart = replace(CONFIG, contrastive=replace(CONFIG.contrastive, mask_share="independent"))
    same, each = (draw(c, 500, T, seed=0, step=0, device="cpu").keep for c in (CONFIG, apart))
    assert (same.shape, each.shape) == ((500, T), (3, 500, T))
    for one, other in itertools.combinations(each.double(), 2):
        together = ((one - one.mean()) * (other - other.mean())).mean()
        assert abs(together.item()) < 0.01  # 0.21 if they were the same


def test_nothing_is_masked_at_ratio_zero_but_by_an_exact_zero() -> None:
    config = replace(CONFIG, contrastive=replace(CONFIG.contrastive, mask_ratio=0.0))
    assert draw(config, 200, T, seed=0, step=0, device="cpu").keep.double().mean() > 0.99


def test_seeds_of_different_purposes_steps_and_runs_differ() -> None:
    seeds = {
        derive_seed(seed, step, purpose)
        for seed, step, purpose in itertools.product((0, 1, 11, -1), (0, 1, 11), ("a", "b"))
    }
    assert len(seeds) == 24
    assert all(0 <= seed < 2**32 for seed in seeds)
