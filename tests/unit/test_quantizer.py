"""Promises of the shared codebook."""

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor

from micu.base.errors import ShapeError
from micu.config.sections import QuantizerConfig
from micu.model.quantizer import UnifiedQuantizer, nearest_code
from micu.store.manifest import MODALITIES
from tests.models import update_

K, D, B, T = 7, 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(
    reset: Literal["revive", "reference", "off"] = "off", **settings: float
) -> UnifiedQuantizer:
    """A quantiser whose codes are spread like the features."""
    config = QuantizerConfig(codebook_size=K, reset=reset, **settings)  # type: ignore[arg-type]
    quantizer = UnifiedQuantizer(D, config).double()
    quantizer.codebook.copy_(randn(K, D))
    quantizer.ema_weight.copy_(quantizer.codebook)
    return quantizer


def features(modalities: int) -> dict[str, Tensor]:
    return {name: randn(B, T, D) for name in MODALITIES[:modalities]}


def some_mask() -> Tensor:
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 3:] = mask[2, 1:] = False
    return mask


def copy_of(quantizer: UnifiedQuantizer) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in quantizer.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(x, other[name]) for name, x in one.items())


def test_the_nearest_code_is_the_one_at_the_smallest_distance() -> None:
    x, codebook = randn(2, 3, D), randn(K, D)
    expected = [[int((codebook - v).norm(dim=1).argmin()) for v in row] for row in x]
    assert nearest_code(x, codebook).tolist() == expected


def test_ties_go_to_the_lowest_code() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), codebook).tolist() == [1, 1]


def test_half_precision_is_compared_in_single() -> None:
    codebook = torch.tensor([[1.0], [1.001]])
    x = torch.tensor([[1.0009765625]], dtype=torch.float16)  # both codes are 1.0 or 1.001 in half
    assert nearest_code(x, codebook).tolist() == [1]


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(D=4\), got \(3,\)"):
        nearest_code(torch.zeros(2, 3), torch.zeros(K, D))


def test_modalities_of_unlike_length_are_refused() -> None:
    z = {"audio": randn(B, T, D), "text": randn(B, T + 1, D)}
    with pytest.raises(ShapeError, match="text to quantise"):
        build().quantize(z)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("own", "cross"), [(0.5, 0.25), (1.0, 0.0)])
def test_commitment_weighs_own_and_cross_codes(
    modalities: int, masked: bool, own: float, cross: float
) -> None:
    quantizer, z = build(commitment_own=own, commitment_cross=cross), features(modalities)
    mask = some_mask() if masked else torch.ones(B, T, dtype=torch.bool)
    out = quantizer.quantize(z, mask if masked else None)
    for name in z:
        expected = 0.0
        for other in z:
            weight = own if other == name else cross / (modalities - 1)
            errors = [
                float((z[name][b, t] - quantizer.codebook[out[other].codes[b, t]]).square().mean())
                for b, t in mask.nonzero().tolist()
            ]
            expected += weight * sum(errors) / len(errors)
        assert float(out[name].commitment_loss) == pytest.approx(expected, rel=1e-12)


def test_gradients_pass_straight_through() -> None:
    quantizer = build()
    z = randn(B, T, D).requires_grad_()
    upstream = randn(B, T, D)
    out = quantizer.quantize({"audio": z})["audio"]
    assert torch.allclose(out.quantized, quantizer.codebook[out.codes])
    (gradient,) = torch.autograd.grad(out.quantized, z, upstream)
    assert torch.equal(gradient, upstream)


def test_perplexity_counts_the_codes_in_use_at_real_steps() -> None:
    quantizer = build()
    z = quantizer.codebook[:4].expand(2, 4, D).clone()
    mask = torch.tensor([[True] * 4, [False] * 4])
    even = quantizer.quantize({"audio": z})["audio"].perplexity
    z[1] = quantizer.codebook[5]
    masked = quantizer.quantize({"audio": z}, mask)["audio"].perplexity
    single = quantizer.quantize({"audio": z[1:]})["audio"].perplexity
    assert [float(x) for x in (even, masked, single)] == pytest.approx([4, 4, 1])


def test_the_null_code_is_taken_without_touching_the_codebook() -> None:
    quantizer, z = build(), {"audio": torch.zeros(1, 1, D).double()}
    before = copy_of(quantizer)
    out = quantizer.quantize(z, null_code=True)["audio"]
    assert out.codes.item() == 0
    assert not out.quantized.any()
    assert same(before, quantizer.state_dict())


def test_looking_codes_up_writes_nothing() -> None:
    quantizer = build("revive", dead_after=1, active_within=1)
    before = copy_of(quantizer)
    quantizer.quantize(features(3))
    quantizer(features(3), some_mask())
    assert same(before, quantizer.state_dict())


def slow_update(
    quantizer: UnifiedQuantizer, z: Mapping[str, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts and weights by the equations, one modality, step and code at a time."""
    config = quantizer.config
    count, weight = quantizer.ema_count.clone(), quantizer.ema_weight.clone()
    codebook = quantizer.codebook.clone()
    for name in z:
        seen, total = torch.zeros(K).double(), torch.zeros(K, D).double()
        for b, t in mask.nonzero().tolist():
            code = int((codebook - z[name][b, t]).norm(dim=1).argmin())
            seen[code] += 1
            for other in z:
                own = config.ema_own
                share = own if other == name else (1 - own) / (len(z) - 1)
                total[code] += share * z[other][b, t]
        count = config.ema_decay * count + (1 - config.ema_decay) * seen
        n, epsilon = count.sum(), config.ema_epsilon
        count = (count + epsilon) / (n + K * epsilon) * n
        weight = config.ema_decay * weight + (1 - config.ema_decay) * total
    return count, weight


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("own", [0.5, 0.8, 1.0])
def test_the_averages_follow_the_equations(modalities: int, masked: bool, own: float) -> None:
    quantizer, z = build(ema_own=own), features(modalities)
    mask = some_mask() if masked else torch.ones(B, T, dtype=torch.bool)
    count, weight = slow_update(quantizer, z, mask)
    update_(quantizer, z, mask if masked else None)
    assert torch.allclose(quantizer.ema_count, count, atol=1e-12)
    assert torch.allclose(quantizer.ema_weight, weight, atol=1e-12)
    assert torch.allclose(quantizer.codebook, weight / count[:, None], atol=1e-12)


def test_the_order_of_updates_matters_to_the_averages() -> None:
    one, two, z = build(), build(), features(3)
    two.load_state_dict(one.state_dict())
    update_(one, z)
    update_(two, dict(reversed(z.items())))
    assert not torch.allclose(one.ema_weight, two.ema_weight, atol=1e-9)


@pytest.mark.parametrize("reset", ["revive", "reference", "off"])
def test_masked_steps_do_not_move_the_codebook(
    reset: Literal["revive", "reference", "off"],
) -> None:
    quantizer, z, mask = build(reset), features(3), some_mask()
    other = build(reset)
    other.load_state_dict(quantizer.state_dict())
    update_(quantizer, z, mask)
    update_(other, {name: x.masked_fill(~mask[..., None], 9.0) for name, x in z.items()}, mask)
    assert same(quantizer.state_dict(), other.state_dict())


def test_a_batch_without_a_real_step_changes_nothing() -> None:
    quantizer = build("revive")
    before = copy_of(quantizer)
    update_(quantizer, features(3), torch.zeros(B, T, dtype=torch.bool))
    assert same(before, quantizer.state_dict())


def test_sums_over_batches_add_up_to_the_whole() -> None:
    quantizer, z = build(), features(3)
    whole = quantizer.assign(z)
    parts = [quantizer.assign({n: x[i : i + 1] for n, x in z.items()}) for i in range(B)]
    assert torch.equal(whole.counts, torch.stack([part.counts for part in parts]).sum(0))
    assert torch.allclose(whole.sums, torch.stack([part.sums for part in parts]).sum(0))
    assert whole.counts.sum() == 3 * B * T


def test_sums_of_parts_move_the_codebook_as_the_whole_batch_does() -> None:
    whole, other, z = build("revive"), build("revive"), features(3)
    other.load_state_dict(whole.state_dict())
    found, *rest = [other.assign({n: x[i : i + 1] for n, x in z.items()}) for i in range(B)]
    for part in rest:
        found.counts.add_(part.counts)
        found.sums.add_(part.sums)
    before = copy_of(other)

    update_(whole, z, generator=torch.Generator().manual_seed(5))
    assert same(before, other.state_dict())  # to assign writes nothing
    other.move_(found, generator=torch.Generator().manual_seed(5))

    torch.testing.assert_close(other.codebook, whole.codebook)
    assert torch.equal(other.unused, whole.unused)


def test_half_precision_features_are_summed_in_single() -> None:
    quantizer = build().float()
    z = dict.fromkeys(("audio", "video"), torch.full((1, 5000, D), 1.0, dtype=torch.bfloat16))
    codes = dict.fromkeys(z, torch.zeros(1, 5000, dtype=torch.int64))
    found = quantizer.assign(z, codes=codes)
    assert found.counts[0, 0] == 5000
    assert found.sums[0, 0, 0] == 5000


def test_a_start_count_of_one_keeps_unused_codes_small() -> None:
    sizes = {}
    for start in ("one", "zero"):
        config = QuantizerConfig(codebook_size=40, ema_init=start, reset="off")  # type: ignore[arg-type]
        quantizer = UnifiedQuantizer(D, config)
        update_(quantizer, {"audio": torch.randn(1, 4, D), "video": torch.randn(1, 4, D)})
        sizes[start] = float(quantizer.codebook.norm(dim=1).max())
    assert sizes["one"] < 1 < 10 < sizes["zero"]


def with_dead_codes(reset: Literal["revive", "reference", "off"]) -> UnifiedQuantizer:
    """Codes 5 and 6, far from every feature, are dead at the next update."""
    quantizer = build(reset)
    quantizer.codebook[5:] = 50.0
    quantizer.ema_weight[5:] = 50.0
    quantizer.unused.copy_(torch.tensor([0, 0, 0, 150, 0, 300, 300]))
    return quantizer


def test_a_dead_code_restarts_beside_an_active_one() -> None:
    quantizer = with_dead_codes("revive")
    update_(quantizer, features(3), generator=torch.Generator().manual_seed(5))
    active = (quantizer.unused[:5] < 100).nonzero()[:, 0]
    distance = (quantizer.codebook[5:, None] - quantizer.codebook[active]).abs().amax(-1)
    assert (distance.min(1).values <= 1 / 1024).all()
    assert distance.min() > 0
    assert quantizer.unused[5:].tolist() == [0, 0]
    assert quantizer.ema_count[5:].tolist() == [1, 1]
    assert torch.equal(quantizer.ema_weight[5:], quantizer.codebook[5:])


def test_a_restart_outlives_the_next_update_unless_as_published() -> None:
    for reset, lives in (("revive", True), ("reference", False)):
        quantizer = with_dead_codes(reset)  # type: ignore[arg-type]
        for _ in range(2):
            update_(quantizer, features(3), generator=torch.Generator().manual_seed(5))
        assert bool((quantizer.codebook[5:] < 10).all()) is lives


def test_restarts_are_drawn_from_the_given_generator() -> None:
    z, results = features(3), []
    for seed in (1, 1, 2):
        torch.manual_seed(3)
        quantizer = with_dead_codes("revive")
        update_(quantizer, z, generator=torch.Generator().manual_seed(seed))
        results.append(quantizer.codebook[5:].clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_dead_codes_are_left_alone_when_resets_are_off() -> None:
    quantizer = with_dead_codes("off")
    update_(quantizer, features(3))
    assert quantizer.unused[5:].tolist() == [301, 301]
    assert (quantizer.codebook[5:] > 40).all()


@pytest.mark.parametrize(("reset", "age"), [("revive", 0), ("reference", 8)])
def test_what_text_uses_is_alive_unless_as_published(
    reset: Literal["revive", "reference"], age: int
) -> None:
    quantizer = build(reset)
    quantizer.unused.fill_(7)
    at = {"audio": quantizer.codebook[0], "text": quantizer.codebook[3]}
    update_(quantizer, {name: x.expand(1, 2, D).clone() for name, x in at.items()})
    assert quantizer.unused[3] == age
    assert quantizer.unused[0] == 0
    assert quantizer.unused[1] == 8


def test_no_active_code_is_no_error() -> None:
    quantizer = build("reference", dead_after=3, active_within=1)
    quantizer.unused.fill_(2)
    codes = {"text": torch.zeros(1, 1, dtype=torch.int64)}  # as published, text uses no code
    update_(quantizer, {"text": randn(1, 1, D)}, codes=codes)
    assert quantizer.unused.tolist() == [3] * K
    update_(quantizer, {"text": randn(1, 1, D)}, codes=codes)
    assert quantizer.codebook.isfinite().all()
    assert quantizer.unused.tolist() == [4] * K


@pytest.mark.parametrize("masked", [False, True])
def test_codes_that_were_looked_up_before_are_not_looked_up_again(masked: bool) -> None:
    one, two, z = build("revive"), build("revive"), features(3)
    two.load_state_dict(one.state_dict())
    mask = some_mask() if masked else None
    codes = {name: entry.codes for name, entry in one.quantize(z, mask).items()}
    update_(one, z, mask)
    update_(two, z, mask, codes=codes)
    assert same(one.state_dict(), two.state_dict())
    other = build("revive")
    other.load_state_dict(one.state_dict())
    update_(one, z, mask, codes={name: torch.zeros_like(x) for name, x in codes.items()})
    update_(other, z, mask)
    assert not same(one.state_dict(), other.state_dict())


def test_codes_of_another_shape_are_refused() -> None:
    codes = {name: torch.zeros(B, T + 1, dtype=torch.int64) for name in MODALITIES[:2]}
    with pytest.raises(ShapeError, match="codes: expected"):
        update_(build(), features(2), codes=codes)


@pytest.mark.parametrize("reset", ["revive", "reference"])
def test_a_dead_code_restarts_at_the_drawn_distance(reset: Literal["revive", "reference"]) -> None:
    quantizer = with_dead_codes(reset)
    update_(quantizer, features(3), generator=torch.Generator().manual_seed(5))
    active = (quantizer.unused[:5] < 100).nonzero()[:, 0]
    drawn = torch.Generator().manual_seed(5)
    picks = torch.randint(len(active), (2,), generator=drawn)
    source = quantizer.codebook[active[picks]]
    noise = torch.rand(source.shape, generator=drawn, dtype=source.dtype)
    moved = (2 * noise - 1) / 1024 if reset == "revive" else torch.full_like(source, -1 / 1024)
    assert torch.equal(quantizer.codebook[5:], source + moved)


def test_codes_start_uniform_up_to_a_four_hundredth() -> None:
    torch.manual_seed(0)
    quantizer = UnifiedQuantizer(64, QuantizerConfig(codebook_size=4000))
    assert 1 / 400.1 < quantizer.codebook.max() <= 1 / 400
    assert -1 / 400 <= quantizer.codebook.min() < -1 / 400.1
    assert abs(quantizer.codebook.mean()) < 1e-5
