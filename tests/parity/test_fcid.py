"""FCID against golden numbers of the published code, and against loops from its equations."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from micu.config.presets import BASELINES
from micu.config.sections import BaselinesConfig, CodeMatchingConfig, TrainConfig
from micu.data.dataset import Batch
from micu.losses import Draws, Losses, compute_terms
from micu.losses.club import ClipClubLoss, ClubLoss, Estimator, club_bound_of_clips
from micu.losses.contrastive import OneWayLoss
from micu.model.micu import MICU
from micu.train.released import (
    ENCODER_SECTION,
    FCID_UNUSED,
    GRID,
    fcid_keys,
    load_released,
)
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.omitted import matching_loss as published_matching
from tests.parity.omitted import most_frequent_agree
from tests.parity.recipe import assert_close, checksum

NAMES = ("video", "audio", "text")
"""In the order in which the published encoder passes them to its codebook."""
ENCODER, DECODER, CPC = 21, 22, 23
CLUBS = {"video": 24, "audio": 25, "words": 26, "senses": 27}
OFFICIAL_WIDTH = 2048


def read_shapes(golden: Golden, part: str) -> recipe.Shapes:
    keys = golden("keys")
    rows = zip(keys[f"{part}_names"], keys[f"{part}_shapes"], strict=True)
    return {str(name): tuple(int(n) for n in shape if n >= 0) for name, shape in rows}


def narrowed(shapes: recipe.Shapes, width: int) -> recipe.Shapes:
    """The published modules with a grid branch of `width` channels."""
    grids = ("v_spe_encoder.", "v_fine_decoder.inverse_conv_block.")
    kept = {"v_spe_encoder.conv_stack.0.weight": 1, "v_spe_encoder.feed_forward.2.weight": 0}
    kept |= {"v_fine_decoder.inverse_conv_block.2.weight": 1}
    code = OFFICIAL_WIDTH + 256
    changed = {OFFICIAL_WIDTH: width, OFFICIAL_WIDTH // 2: width // 2, code: width + 256}
    return {
        key: tuple(n if i == kept.get(key) else changed.get(n, n) for i, n in enumerate(shape))
        if key.startswith(grids)
        else shape
        for key, shape in shapes.items()
    }


def tensors(state: Mapping[str, recipe.Array]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(x) for key, x in state.items()}


def decoder_keys() -> dict[str, str]:
    """Keys of the published reconstruction module to ours."""
    keys: dict[str, str] = {}
    block, ours = "v_fine_decoder.inverse_conv_block", "reconstructors.video"
    for leaf in ("weight", "bias"):
        keys[f"v_fine_decoder.video_linear.{leaf}"] = f"{ours}.code.{leaf}"
        keys[f"a_fine_decoder.audio_linear.{leaf}"] = f"reconstructors.audio.code.{leaf}"
        keys[f"a_fine_decoder.audio_rec.{leaf}"] = f"reconstructors.audio.net.{leaf}"
        for i in (0, 2, 4):
            keys[f"{block}.{i}.{leaf}"] = f"{ours}.net.{i}.{leaf}"
        for name in NAMES:
            theirs, clips = f"{name[0]}_coarse_decoder.simple", f"clips.reconstructors.{name}"
            keys[f"{theirs}_linear.{leaf}"] = f"{clips}.code.{leaf}"
            keys[f"{theirs}_rec.{leaf}"] = f"{clips}.net.{leaf}"
    keys[f"{block}.1.stack.0.res_block.1.weight"] = f"{ours}.net.1.inner.weight"
    keys[f"{block}.1.stack.0.res_block.3.weight"] = f"{ours}.net.1.outer.weight"
    return keys


def cpc_keys() -> dict[str, str]:
    """Keys of the published Cross-CPC to ours."""
    keys = {}
    for name in ("video", "audio"):
        for leaf in ("weight", "bias"):
            keys[f"{name}_predictors.0.{leaf}"] = f"cpc.predictors.{name}.{leaf}"
            for kind in ("ih", "hh"):
                for layer in (0, 1):
                    end = f"{leaf}_{kind}_l{layer}"
                    keys[f"{name}_ar_lstm.{end}"] = f"cpc.readers.{name}.{end}"
    return keys


def configured() -> TrainConfig:
    config = BASELINES["fcid"]()
    return replace(
        config,
        modalities=NAMES,
        encoder=replace(config.encoder, dropout=0.0),
        baselines=BaselinesConfig(code_matching=CodeMatchingConfig(index="reference")),
    )


class Rebuilt:
    """The published run's modules, filled by the recipe, and its batch."""

    def __init__(self, golden: Golden, base: int) -> None:
        self.expected = golden("fcid")
        clips, steps, width = (int(n) for n in self.expected["B_T_vout"])
        config = configured()
        config = replace(config, reconstruction=replace(config.reconstruction, grid_width=width))
        shapes = {"video": (*GRID, 512), "audio": (128,), "text": (768,)}
        encoder = recipe.fill_state(narrowed(read_shapes(golden, "encoder"), width), ENCODER, base)
        decoder = recipe.fill_state(narrowed(read_shapes(golden, "decoder"), width), DECODER, base)
        self.encoder = tensors(encoder)
        self.model = MICU(config, shapes).double()
        state = {ours: self.encoder[key] for key, ours in fcid_keys().items()}
        state |= {ours: tensors(decoder)[key] for key, ours in decoder_keys().items()}
        state["quantizer.unused"] = state["quantizer.unused"].to(torch.int64)
        self.model.load_state_dict(state, strict=True)
        self.losses = Losses(config)
        self.losses.start_(self.model, 10)
        self._fill_losses(golden, base, width)
        seeds = {"audio": 10 * base + 1, "video": 10 * base + 2, "text": 10 * base + 3}
        features = {
            name: torch.from_numpy(recipe.tensor((clips, steps, *shapes[name]), seed))
            for name, seed in seeds.items()
        }
        names = tuple(map(str, range(clips)))
        self.batch = Batch(features, torch.ones(clips, steps, dtype=torch.bool), names, names)

    def _fill_losses(self, golden: Golden, base: int, width: int) -> None:
        cpc = tensors(recipe.fill_state(read_shapes(golden, "cpc"), CPC, base))
        self.losses.double()
        club = cast(ClubLoss, self.losses.club)
        clip_club = cast(ClipClubLoss, self.losses.clip_club)
        # The published head's width does not follow that of the grid.
        head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 512))
        club.heads["video"] = head.double()
        club.estimators["video"] = Estimator(256, 512, 128).double()
        club.optimizer = torch.optim.Adam(club.estimators.parameters(), lr=1e-3)
        clip_club.optimizer = torch.optim.Adam(clip_club.estimators.parameters(), lr=1e-3)
        state = {ours: cpc[key] for key, ours in cpc_keys().items()}
        for i in (0, 2):
            for leaf in ("weight", "bias"):
                key = f"v_spe_encoder.feed_forward.{i}.{leaf}"
                state[f"club.heads.video.{i}.{leaf}"] = self.encoder[key]
        for name, module in CLUBS.items():
            loss = "club" if name in club.estimators else "clip_club"
            part = "club_video" if name == "video" else "club_audio"
            filled = tensors(recipe.fill_state(read_shapes(golden, part), module, base))
            for key, x in filled.items():
                end = key.replace("p_mu", "mean").replace("p_logvar", "log_variance.0")
                state[f"{loss}.estimators.{name}.{end}"] = x
        missing, unknown = self.losses.load_state_dict(state, strict=False)
        assert not unknown
        assert all(key.endswith("_extra_state") for key in missing)

    def draws(self, monkeypatch: pytest.MonkeyPatch) -> Draws:
        """Those of the published run."""
        nothing, steps = torch.zeros(0), self.batch.mask.shape[1]
        given = [Draws(nothing, nothing, seed=1, step=step) for step in range(500)]
        last = int(self.expected["cpc_t"])
        found = next(
            draws
            for draws in given
            if int(torch.randint(1, steps - 1, (), generator=draws.generator("cpc"))) == last
        )
        orders = [
            torch.from_numpy(self.expected[f"perm_{name}"])
            for name in ("video", "audio", "text", "av")
        ]
        # Losses come in the order of their weights, `club` before `clip_club`.
        queue = [*orders, *orders]
        monkeypatch.setattr(torch, "randperm", lambda n, generator: queue.pop(0))
        return found


@pytest.fixture
def rebuilt(golden: Golden, base: int) -> Rebuilt:
    return Rebuilt(golden, base)


def test_every_published_key_is_mapped_or_known_to_be_unused(golden: Golden) -> None:
    shapes = read_shapes(golden, "encoder")
    assert set(shapes) == {*fcid_keys(), *FCID_UNUSED}
    assert len(shapes) == 116
    assert not {*fcid_keys()} & FCID_UNUSED
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 78_420_001


def test_embeddings_and_codes_of_clips_and_seconds_are_the_published_ones(
    rebuilt: Rebuilt,
) -> None:
    model, expected = rebuilt.model.eval(), rebuilt.expected
    with torch.no_grad():
        output = model(rebuilt.batch)
        steps = model.encode(rebuilt.batch.features)
    for name in ("video", "audio"):
        assert_close(output.embeddings[name], expected[f"fine_{name}"])
    assert set(output.embeddings) == {"video", "audio"}
    for name in NAMES:
        clip = output.quantized[name]
        np.testing.assert_array_equal(clip.codes[:, 0], expected[f"clip_idx_{name}"])
        assert_close(checksum(clip.quantized.numpy()), expected[f"clip_code_chk_{name}"])
        np.testing.assert_array_equal(steps[name].codes, expected[f"step_idx_{name}"])
        if f"step_code_chk_{name}" in expected:
            got = checksum(steps[name].quantized.numpy())
            assert_close(got, expected[f"step_code_chk_{name}"])


def test_a_training_step_has_the_published_losses_codebook_and_gradients(
    rebuilt: Rebuilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, batch, losses = rebuilt.expected, rebuilt.batch, rebuilt.losses.train()
    model, draws = rebuilt.model.train(), rebuilt.draws(monkeypatch)
    output = model(batch)
    clips = output.clips
    assert clips is not None
    for name in NAMES:
        short = f"train_c_{name[0]}"
        assert_close(clips.content[name][:, 0].detach(), expected[short])
        assert_close(clips.general[name][:, 0].detach(), expected[f"{short}_gen"])
        assert_close(clips.specific[name][:, 0].detach(), expected[f"{short}_spe"])
        np.testing.assert_array_equal(
            output.quantized[name].codes[:, 0], expected[f"train_idx_{name}"]
        )
    assert most_frequent_agree(output.quantized) == int(expected["equal_num"])

    club = cast(ClubLoss, losses.club)
    clip_club = cast(ClipClubLoss, losses.clip_club)
    before = club.compute(output, batch, draws) + clip_club.compute(output, batch, draws)
    assert_close(before.detach(), expected["mi_before"].sum())
    losses.fit_estimators_(output, batch, draws)
    terms = compute_terms(output, batch, losses, draws)
    given = dict(zip(expected["loss_names"], expected["loss_values"], strict=True))
    assert_close(terms["reconstruction"].detach(), given["rec_fine"] + given["rec_coarse"])
    assert_close(terms["commitment"].detach(), given["commit"])
    assert_close(terms["club"].detach(), given["mi_video"] + given["mi_audio"])
    assert_close(terms["clip_club"].detach(), given["mi_text"] + given["mi_av"])
    assert_close(terms["cpc"].detach(), given["cpc"])
    assert_close(terms["one_way"].detach(), given["infonce_vt"] + given["infonce_at"])
    general = {name: clips.general[name] for name in NAMES}
    published = published_matching(general, model.quantizer.codebook)
    assert_close(published.detach(), given["cmcm"])
    # The published sum has 1e-5 added to it.
    assert_close(0.5 * terms["code_matching"].detach(), given["cmcm"], 1e-4)

    weights = losses.config.weights
    rest = [getattr(weights, name) * terms[name] for name in terms if name != "code_matching"]
    total = torch.stack(rest).sum() + published
    assert_close(total.detach(), expected["total"])
    total.backward()  # type: ignore[no-untyped-call]
    check_gradients(rebuilt)
    quantizer = model.quantizer
    quantizer.move_(quantizer.assign(output.update_semantic(), output.update_mask(batch.mask)))
    assert_close(checksum(quantizer.ema_count.numpy()), expected["after_ema_count_chk"])
    assert_close(checksum(quantizer.ema_weight.numpy()), expected["after_ema_weight_chk"])
    assert_close(checksum(quantizer.codebook.numpy()), expected["after_embedding_chk"])
    np.testing.assert_array_equal(quantizer.unused, expected["after_unactivated"])


def check_gradients(rebuilt: Rebuilt) -> None:
    ours = {f"encoder.{old}": new for old, new in fcid_keys().items()}
    ours |= {f"decoder.{old}": new for old, new in decoder_keys().items()}
    ours |= {f"cpc.{old}": new for old, new in cpc_keys().items()}
    head = "v_spe_encoder.feed_forward"
    ours |= {
        f"encoder.{head}.{i}.{leaf}": f"club.heads.video.{i}.{leaf}"
        for i in (0, 2)
        for leaf in ("weight", "bias")
    }
    parameters = dict(rebuilt.model.named_parameters()) | dict(rebuilt.losses.named_parameters())
    rows = zip(rebuilt.expected["grad_names"], rebuilt.expected["grad_norms"], strict=True)
    compared = 0
    for name, norm in rows:
        if ".affine_video_" in name or ".ave_v_att." in name:
            assert norm == 0
            continue
        grad = parameters[ours[str(name)]].grad
        assert grad is not None, name
        assert_close(grad.norm(), norm, 1e-6)
        compared += 1
    assert compared == len(rebuilt.expected["grad_names"]) - 6
    for name in rebuilt.expected["no_grad_names"]:
        assert str(name).removeprefix("encoder.") in FCID_UNUSED


def test_a_published_checkpoint_is_read_and_encodes_as_published(
    rebuilt: Rebuilt, tmp_path: Path
) -> None:
    content = {ENCODER_SECTION: rebuilt.encoder, "epoch": 4, "total_step": 2000}
    torch.save(content, tmp_path / "FCID.pt")
    model = load_released(tmp_path / "FCID.pt")
    assert (model.config.encoder.layers, model.config.encoder.unify) == (1, "clips")
    assert model.config.optimizer.dtype == "float64"
    with torch.no_grad():
        found = model.encode(rebuilt.batch.features)
    for name in NAMES:
        np.testing.assert_array_equal(found[name].codes, rebuilt.expected[f"step_idx_{name}"])


# --- loops -----------------------------------------------------------------------------------


def test_the_bound_of_clips_is_a_mean_over_channels_and_a_sum_over_clips_that_are_real() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, y = torch.randn(3, 4, 1, 5, generator=generator).double()
    mask, other = torch.tensor([True, True, False, True])[:, None], [1, 3, 0, 2]
    total = 0.0
    for b, c in enumerate(other):
        if mask[b] and mask[c]:
            apart = sum((mean[b, 0, d] - y[c, 0, d]) ** 2 for d in range(5)) / 5
            together = sum((mean[b, 0, d] - y[b, 0, d]) ** 2 for d in range(5)) / 5
            spread = torch.exp(sum(log_variance[b, 0, d] for d in range(5)) / 5)
            total += 0.5 * float((apart - together) / spread)
    got = club_bound_of_clips(mean, log_variance, y, torch.tensor(other), mask)
    assert got.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("audio", "video", "text"), [(0, 2), (1, 2)]),
        (("text", "audio", "video"), [(1, 0), (2, 0)]),
        (("audio", "video", "flow"), [(0, 1), (0, 2), (1, 2)]),
    ],
)
def test_each_modality_looks_for_its_sentence_or_without_text_for_those_after_it(
    names: tuple[str, ...], pairs: list[tuple[int, int]]
) -> None:
    loss = OneWayLoss(replace(BASELINES["fcid"](), modalities=names))
    clips = torch.randn(6, 3, 256, generator=torch.Generator().manual_seed(0)).double()
    real = torch.tensor([True] * 5 + [False])
    total = 0.0
    for m, n in pairs:
        for i in range(5):
            cosines = [torch.cosine_similarity(clips[i, m], clips[j, n], dim=0) for j in range(5)]
            total -= float((torch.stack(cosines) / 0.1).log_softmax(0)[i]) / 5
    assert loss.compare(clips, real).item() == pytest.approx(total, rel=1e-9)
