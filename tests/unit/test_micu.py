"""Promises of the whole model and of the named runs."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from micu.base.errors import ConfigError, ShapeError
from micu.config.presets import PRESETS
from micu.config.sections import (
    EncoderConfig,
    JigsawConfig,
    LossWeights,
    QuantizerConfig,
    ReconstructionConfig,
    TrainConfig,
)
from micu.data.dataset import Batch
from micu.model.micu import MICU, MICUOutput
from tests.models import update_

B, T = 3, 4
SHAPES: dict[str, tuple[int, ...]] = {
    "audio": (6,),
    "video": (5, 6, 8),
    "flow": (9,),
    "text": (7,),
}
CHOICES = [("audio", "video"), ("video", "text"), ("audio", "flow", "text"), tuple(SHAPES)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def config_of(modalities: tuple[str, ...], **changes: object) -> TrainConfig:
    small = TrainConfig(
        modalities=modalities,
        encoder=EncoderConfig(
            embed_dim=8, heads=2, feedforward_dim=12, text_hidden_dim=3, dropout=0.0
        ),
        quantizer=QuantizerConfig(codebook_size=9),
        reconstruction=ReconstructionConfig(grid_width=6, vector_width=5),
        jigsaw=JigsawConfig(splits=2, permutations=2),
    )
    return replace(small, **changes)  # type: ignore[arg-type]


def build(modalities: tuple[str, ...], **changes: object) -> MICU:
    shapes = {name: SHAPES[name] for name in modalities}
    model = MICU(config_of(modalities, **changes), shapes).double()
    model.quantizer.codebook.normal_()
    return model


def batch_of(modalities: tuple[str, ...], steps: int = T, mask: Tensor | None = None) -> Batch:
    features = {
        name: torch.randn(B, steps, *SHAPES[name], dtype=torch.float64) for name in modalities
    }
    if mask is None:
        mask = torch.ones(B, steps, dtype=torch.bool)
    return Batch(features, mask, tuple("abc"), ("",) * B)


def objective(output: MICUOutput) -> Tensor:
    """Something that depends on every output."""
    rebuilt = sum(
        (x - output.target[name]).square().mean() for name, x in output.reconstruction.items()
    )
    committed = sum(entry.commitment_loss for entry in output.quantized.values())
    return torch.as_tensor(rebuilt + committed)


@pytest.mark.parametrize("modalities", CHOICES)
def test_any_modalities_run_and_every_parameter_is_reached(modalities: tuple[str, ...]) -> None:
    model, batch = build(modalities), batch_of(modalities)
    output = model(batch)
    for name in modalities:
        step = (6,) if name == "text" else SHAPES[name]
        assert output.quantized[name].quantized.shape == (B, T, 8)
        assert output.quantized[name].codes.shape == (B, T)
        assert output.reconstruction[name].shape == output.target[name].shape == (B, T, *step)
    assert not any(z.requires_grad for z in output.update_semantic().values())
    objective(output).backward()  # type: ignore[no-untyped-call]
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_forward_leaves_the_state_untouched() -> None:
    modalities = CHOICES[-1]
    for training in (False, True):
        model = build(modalities, quantizer=QuantizerConfig(codebook_size=9, null_code=True))
        before = {name: x.clone() for name, x in model.train(training).state_dict().items()}
        batch = batch_of(modalities)
        model(batch)
        model.encode(batch.features, batch.mask)
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_the_order_of_a_batchs_dictionary_changes_nothing() -> None:
    modalities = CHOICES[-1]
    model, batch = build(modalities).eval(), batch_of(modalities)
    turned = replace(batch, features=dict(reversed(batch.features.items())))
    one, two = model(batch), model(turned)
    assert list(one.quantized) == list(two.quantized) == list(modalities)
    for name in modalities:
        assert torch.equal(one.quantized[name].quantized, two.quantized[name].quantized)
        assert torch.equal(one.quantized[name].commitment_loss, two.quantized[name].commitment_loss)
        assert torch.equal(one.reconstruction[name], two.reconstruction[name])


def test_a_padded_batch_equals_the_unpadded_one() -> None:
    modalities = CHOICES[-1]
    model, batch = build(modalities).eval(), batch_of(modalities)
    mask = torch.tensor([[True] * T + [False] * 3] * B)
    padded = batch_of(modalities, T + 3, mask)  # random values stand at the padded steps
    for name, x in batch.features.items():
        padded.features[name][:, :T] = x
    short, long = model(batch), model(padded)
    for name in modalities:
        one, two = short.quantized[name], long.quantized[name]
        assert torch.equal(one.codes, two.codes[:, :T])
        assert torch.allclose(one.semantic, two.semantic[:, :T], atol=1e-12)
        assert torch.allclose(one.commitment_loss, two.commitment_loss, atol=1e-12)
        assert torch.allclose(one.perplexity, two.perplexity, atol=1e-12)
        assert torch.allclose(
            short.reconstruction[name], long.reconstruction[name][:, :T], atol=1e-12
        )
    other = build(modalities)
    other.load_state_dict(model.state_dict())
    update_(model.quantizer, short.update_semantic(), batch.mask)
    update_(other.quantizer, long.update_semantic(), padded.mask)
    assert torch.allclose(model.quantizer.codebook, other.quantizer.codebook, atol=1e-12)


def test_a_clip_does_not_depend_on_its_batch() -> None:
    modalities = CHOICES[-1]
    model, batch = build(modalities).eval(), batch_of(modalities)
    whole = model.encode(batch.features)
    alone = model.encode({name: x[1:2] for name, x in batch.features.items()})
    for name in modalities:
        assert torch.allclose(whole[name].semantic[1:2], alone[name].semantic, atol=1e-12)


def test_a_modality_is_encoded_without_the_others() -> None:
    modalities = CHOICES[-1]
    model, batch = build(modalities).eval(), batch_of(modalities)
    whole = model(batch).quantized
    for name in modalities:
        alone = model.encode({name: batch.features[name]})[name]
        assert torch.equal(alone.codes, whole[name].codes)
        assert torch.allclose(alone.semantic, whole[name].semantic, atol=1e-12)


def test_the_null_code_works_in_encode_and_not_in_training() -> None:
    settings = QuantizerConfig(codebook_size=9, null_code=True)
    model, batch = build(("audio", "text"), quantizer=settings).eval(), batch_of(("audio", "text"))
    model.quantizer.codebook.add_(100)
    model.quantizer.codebook[0] += 100
    assert (model.encode(batch.features)["audio"].codes == 0).all()
    assert not (model(batch).quantized["audio"].codes == 0).all()


def test_the_model_builds_without_memory() -> None:
    with torch.device("meta"):
        model = MICU(PRESETS["micu"](), {"audio": (128,), "video": (7, 7, 512), "text": (768,)})
    assert all(p.is_meta for p in model.parameters())
    branch = sum(p.numel() for p in model.reconstructors.parameters())
    assert branch == 37_402_663 - 3 * (256 * 256 + 256 + 141 * 256 + 141)  # less its dead heads


def test_clipping_groups_hold_every_parameter_once() -> None:
    model = build(CHOICES[-1])
    groups = model.parameter_groups()
    listed = [id(p) for group in groups.values() for p in group]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert set(groups) == {"encoder", "text_lstm", "reconstruction"}
    assert set(build(CHOICES[0]).parameter_groups()) == {"encoder", "reconstruction"}


@pytest.mark.parametrize("keeps", [False, True])
def test_the_text_target_has_a_gradient_only_on_request(keeps: bool) -> None:
    branch = ReconstructionConfig(grid_width=6, vector_width=5, text_target_grad=keeps)
    output = build(("audio", "text"), reconstruction=branch)(batch_of(("audio", "text")))
    assert output.target["text"].requires_grad is keeps
    assert not output.target["audio"].requires_grad


def test_text_is_rebuilt_as_its_words_if_they_are_the_target() -> None:
    branch = ReconstructionConfig(grid_width=6, vector_width=5, text_target="input")
    batch = batch_of(("audio", "text"))
    output = build(("audio", "text"), reconstruction=branch)(batch)
    assert torch.equal(output.target["text"], batch.features["text"])
    assert output.reconstruction["text"].shape == (B, T, *SHAPES["text"])
    assert output.target["audio"] is batch.features["audio"]


def test_a_reconstruction_that_is_left_out_has_no_networks_and_leaves_the_rest_alone() -> None:
    modalities = CHOICES[-1]
    batch = batch_of(modalities)
    model = build(modalities, weights=LossWeights(reconstruction=None))
    assert not [name for name in model.state_dict() if name.startswith(("spec", "recon"))]
    assert set(model.parameter_groups()) == {"encoder", "text_lstm"}
    output = model.eval()(batch)
    assert output.reconstruction == output.target == {}
    whole = build(modalities).eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    for name in modalities:
        assert torch.equal(output.quantized[name].codes, whole(batch).quantized[name].codes)


def test_a_reconstruction_of_weight_zero_keeps_no_graph() -> None:
    weights = LossWeights(reconstruction=0.0)
    output = build(("audio", "video"), weights=weights)(batch_of(("audio", "video")))
    assert not any(x.requires_grad for x in output.reconstruction.values())
    assert output.quantized["audio"].quantized.requires_grad


def test_reconstruction_can_be_left_out() -> None:
    modalities = CHOICES[-1]
    model, batch = build(modalities), batch_of(modalities)
    output = model(batch, reconstruct=False)
    assert output.reconstruction == output.target == {}
    assert torch.equal(output.quantized["flow"].codes, model(batch).quantized["flow"].codes)


def test_mistaken_inputs_are_named() -> None:
    model, batch = build(("audio", "video")), batch_of(("audio", "video"))
    with pytest.raises(ConfigError, match="no modality 'vidoe'; did you mean 'video'"):
        model.encode({"vidoe": batch.features["video"]})
    with pytest.raises(ShapeError, match=r"audio features: expected \(B, T, 6\), got .*backbone"):
        model.encode({"audio": torch.zeros(1, 2, 5).double()})
    with pytest.raises(ConfigError, match="got none"):
        model.encode({})
    with pytest.raises(ConfigError, match="batch: no features of video"):
        model(replace(batch, features={"audio": batch.features["audio"]}))
    with pytest.raises(ConfigError, match="expected audio, video, got audio"):
        MICU(config_of(("audio", "video")), {"audio": (6,)})
    with pytest.raises(ShapeError, match="audio features: expected"):
        MICU(config_of(("audio", "video")), {"audio": (5, 5, 6), "video": (8,)})


def changes_of(name: str) -> dict[str, object]:
    """What a preset changes in the defaults."""

    def flatten(value: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(value, dict):
            return {prefix[:-1]: value}
        return {k: v for key, x in value.items() for k, v in flatten(x, f"{prefix}{key}.").items()}

    plain = flatten(asdict(TrainConfig()))
    return {k: v for k, v in flatten(asdict(PRESETS[name]())).items() if v != plain[k]}


ABLATIONS = {
    "ablation-fine": {"weights.coarse": 0.0, "weights.jigsaw": None},
    "ablation-coarse": {"weights.fine": 0.0, "weights.jigsaw": None},
    "ablation-cujp": {"weights.fine": 0.0, "weights.coarse": 0.0},
    "ablation-fine-coarse": {"weights.jigsaw": None},
    "ablation-fine-cujp": {"weights.coarse": 0.0},
    "ablation-coarse-cujp": {"weights.fine": 0.0},
    "fig3-mmjp": {"weights.jigsaw": None, "weights.mmjp": 2.0},
    "fig3-cujp2": {"jigsaw.splits": 2, "jigsaw.permutations": 2},
    "fig3-cujp4": {"jigsaw.splits": 4, "jigsaw.permutations": 24},
    "fig4-independent": {"contrastive.mask_share": "independent"},
    **{f"fig5-{size}": {"quantizer.codebook_size": size} for size in (256, 512, 800, 1024)},
}


def test_an_ablation_changes_what_its_name_says_and_nothing_else() -> None:
    assert {name: changes_of(name) for name in ABLATIONS} == ABLATIONS
    assert set(PRESETS) >= {"micu", "paper", "reference", *ABLATIONS}


def test_presets_change_what_they_say() -> None:
    assert changes_of("micu") == {}
    assert changes_of("small") == {
        "jigsaw.splits": 4,
        "jigsaw.permutations": 24,
        "optimizer.batch_size": 22,
        "optimizer.epochs": 400,
        "optimizer.max_steps": 400,
    }
    assert changes_of("paper") == {
        "encoder.spatial": "softmax",
        "contrastive.tau": 1.0,
        "contrastive.normalize": False,
        "contrastive.mask_axis": "feature",
        "quantizer.commitment_own": 1.0,
        "quantizer.commitment_cross": 0.0,
        "quantizer.reset": "off",
        "reconstruction.text_target": "input",
        "data.splits": (),
    }
    assert changes_of("reference") == {
        "encoder.clone_init": True,
        "quantizer.ema_init": "zero",
        "quantizer.reset": "reference",
        "quantizer.null_code": True,
        "reconstruction.text_target_grad": True,
        "jigsaw.splits": 2,
        "jigsaw.permutations": 2,
        "weights.jigsaw": 1.0,
        "optimizer.clip_jigsaw": False,
        "optimizer.double_forward": True,
        "optimizer.dtype": "float64",
        "data.splits": (),
    }
