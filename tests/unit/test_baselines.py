"""Every baseline as a run: it trains, encodes, is saved, goes on, and skips what is not finite."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from micu.base.errors import ConfigError, TrainError
from micu.config.overrides import config_differences, from_json, to_json, with_overrides
from micu.config.presets import BASELINES, PRESETS
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import Losses
from micu.losses.code_matching import CodeMatchingLoss, kmeans
from micu.model.quantizer import nearest_code
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import Position, load_checkpoint, restore_, save_checkpoint
from micu.train.state import TrainState
from micu.train.step import build_state, train_step
from tests.feature_sets import SMALL

B, T, STEPS = 6, 5, 8
SHAPES: dict[str, tuple[int, ...]] = {
    "audio": (6,),
    "video": (5, 5, 4),
    "flow": (8,),
    "text": (7,),
}
SETS = [("audio", "flow"), ("audio", "video", "text"), ("audio", "video", "flow", "text")]
QUEUE = ("baselines.transport.queue_size=14",)
CASES = [(name, modalities) for name in BASELINES for modalities in SETS]
ANY_SET = pytest.mark.parametrize(
    ("name", "modalities"), CASES, ids=[f"{n} {'-'.join(m)}" for n, m in CASES]
)
EVERY = pytest.mark.parametrize("name", list(BASELINES))


def configured(name: str, modalities: tuple[str, ...] = SETS[1]) -> TrainConfig:
    small = [*SMALL, f"data.steps={T}", *(QUEUE if name == "codis" else ())]
    return replace(with_overrides(PRESETS[name](), small), modalities=modalities)


def fresh(config: TrainConfig, steps: int = STEPS) -> TrainState:
    return build_state(config, {name: SHAPES[name] for name in config.modalities}, "cpu", steps)


def batch(number: int, modalities: tuple[str, ...]) -> Batch:
    generator = torch.Generator().manual_seed(number)
    features = {
        name: torch.randn((B, T, *SHAPES[name]), generator=generator) for name in modalities
    }
    mask = torch.arange(T) < torch.tensor([5, 5, 3, 4, 5, 2])[:, None]
    return Batch(features, mask, tuple(f"clip{number}/{i}" for i in range(B)), ("",) * B)


def train(state: TrainState, numbers: range) -> list[float]:
    return [train_step(state, batch(i, state.config.modalities)).total for i in numbers]


def everything(state: TrainState) -> dict[str, Any]:
    parts = {"model": state.model, "losses": state.losses, "optimizer": state.optimizer}
    return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def save(state: TrainState, path: Path) -> Path:
    specs = {
        name: FeatureSpec(
            backbone="toy",
            modality=name,
            shape=shape,
            hop_s=1.0,
            weights="random:0",
            weights_sha256="0" * 64,
        )
        for name, shape in state.model.shapes.items()
    }
    save_checkpoint(state, path, specs=specs, position=Position(0, state.step), extra={})
    return path


@ANY_SET
def test_every_baseline_trains_any_modalities_and_encodes_them_without_writing(
    name: str, modalities: tuple[str, ...]
) -> None:
    state = fresh(configured(name, modalities))
    before = everything(state)
    totals = train(state, range(4))  # the warm start of `cmcm` ends within
    assert all(torch.tensor(totals).isfinite())
    moved = state.model.state_dict()
    for modality in modalities:
        key = f"semantic_encoders.{modality}.project.weight"
        assert not torch.equal(before["model"][key], moved[key])
    after = everything(state)
    found = state.model.eval().encode(batch(9, modalities).features, batch(9, modalities).mask)
    assert found.keys() == set(modalities)
    for entry in found.values():
        assert entry.quantized.shape == (B, T, state.config.encoder.embed_dim)
        table = state.model.quantizer.codebook[entry.codes]
        torch.testing.assert_close(entry.quantized, table, rtol=1e-4, atol=1e-5)
    assert_same(everything(state), after)


@EVERY
def test_a_baseline_goes_on_from_its_checkpoint_bit_by_bit(name: str, tmp_path: Path) -> None:
    config = configured(name)
    state = fresh(config)
    train(state, range(2))
    path = save(state, tmp_path / "a.pt")
    again = fresh(config, steps=100)  # what was planned first holds, whatever is planned now
    restore_(again, path)
    assert_same(everything(again), everything(state))
    assert train(again, range(2, 6)) == train(state, range(2, 6))
    assert_same(everything(again), everything(state))
    loaded = load_checkpoint(save(state, path)).model
    features = batch(9, config.modalities).features
    want, got = state.model.eval().encode(features), loaded.encode(features)
    for modality, entry in want.items():
        assert torch.equal(entry.quantized, got[modality].quantized)


@EVERY
def test_a_bad_batch_moves_nothing_of_a_baseline(name: str) -> None:
    state = fresh(configured(name))
    train(state, range(4))
    before = everything(state)
    bad = batch(4, state.config.modalities)
    bad.features["audio"][1, 1] = torch.nan
    with pytest.raises(TrainError, match="step 4: loss"):
        train_step(state, bad)
    assert_same(everything(state), before)


@EVERY
def test_a_gradient_that_is_not_finite_moves_nothing_of_a_baseline(name: str) -> None:
    state = fresh(configured(name))
    train(state, range(1))
    before = everything(state)
    hook = next(state.model.reconstructors.parameters()).register_hook(lambda g: g * torch.inf)
    with pytest.raises(TrainError, match="gradient of"):
        train(state, range(1, 2))
    hook.remove()
    assert_same(everything(state), before)


@EVERY
def test_thirty_steps_on_one_batch_lower_what_a_baseline_minimises(name: str) -> None:
    config = configured(name)
    config = replace(config, encoder=replace(config.encoder, dropout=0.0))
    state, same = fresh(config, 32), batch(0, config.modalities)
    reports = [train_step(state, same) for _ in range(32)]
    first = {"cmcm": 12, "dcid": 1}.get(name, 0)  # the end of the warm-up; estimators start at 0
    ignored = {"self_cross": "more is hidden", "commitment": "the codes move"}
    ignored |= dict.fromkeys(("club", "clip_club"), "fits")
    for term, value in reports[first].terms.items():
        if term not in ignored:
            assert reports[-1].terms[term] < value, term


@EVERY
def test_a_baseline_is_told_from_micu_by_its_settings_alone(name: str) -> None:
    config = PRESETS[name]()
    assert config == BASELINES[name]()
    assert from_json(to_json(config)) == config
    sections = {key.split(".")[0] for key in config_differences(TrainConfig(), config)}
    own = {"fcid": {"encoder", "contrastive"}}.get(name, set())
    assert sections <= {"weights", "quantizer", "baselines", "optimizer", *own}
    assert config.optimizer == replace(TrainConfig().optimizer, epochs=config.optimizer.epochs)


def test_the_baselines_have_the_weights_that_their_sources_give() -> None:
    given = {
        name: {
            loss: weight
            for loss, weight in BASELINES[name]().weights.given().items()
            if loss not in ("reconstruction", "commitment")
        }
        for name in BASELINES
    }
    assert given == {
        "dcid": {"club": 1.0, "cpc": 1.0, "code_matching": 0.5},
        "cmcm": {"code_matching": 0.5},
        "turn": {"self_cross": 0.1, "one_way": 0.1},
        "fcid": {"club": 1.0, "clip_club": 1.0, "cpc": 1.0, "code_matching": 0.5, "one_way": 1.0},
        "codis": {"transport": 1.0},
        "skeleton": {},
    }


def test_a_run_of_micu_holds_nothing_of_the_baselines() -> None:
    state = fresh(configured("micu"))
    assert {key.split(".")[0] for key in state.losses.state_dict()} == {"jigsaw"}
    assert state.model.quantizer.state_dict().keys() == {
        *("codebook", "ema_count", "ema_weight", "unused")
    }


# --- what the hooks keep apart -----------------------------------------------------------------


def test_the_optimiser_has_neither_the_estimators_nor_the_teacher() -> None:
    for name, part in (("dcid", "club.estimators"), ("codis", "transport.teacher")):
        state = fresh(configured(name))
        known = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
        aside = dict(state.losses.get_submodule(part).named_parameters())
        assert aside
        assert not any(id(p) in known for p in aside.values())
        rest = [p for p in state.losses.parameters() if id(p) not in {*map(id, aside.values())}]
        assert all(id(p) in known for p in rest)


def test_a_loss_that_is_left_out_leaves_out_the_reconstruction_and_its_cost() -> None:
    config = with_overrides(configured("ablation-coarse"), ["weights.reconstruction=none"])
    state = fresh(config)
    output = state.model(batch(0, config.modalities))
    assert (output.reconstruction, output.specific) == ({}, {})
    report = train_step(state, batch(0, config.modalities))
    assert report.terms.keys() == {"fine", "coarse", "commitment"}


# --- the warm start ----------------------------------------------------------------------------


def test_nothing_is_quantised_before_the_end_of_the_warm_up() -> None:
    state = fresh(configured("cmcm"))  # 3 of 8 steps
    codebook = state.model.quantizer.codebook.clone()
    for step in range(3):
        assert state.losses.is_continuous(step)
        report = train_step(state, batch(step, state.config.modalities))
        assert report.terms["commitment"] == report.terms["code_matching"] == 0
        assert torch.equal(state.model.quantizer.codebook, codebook) == (step < 2)
    assert not state.losses.is_continuous(3)
    report = train_step(state, batch(3, state.config.modalities))
    assert report.terms["commitment"] > 0
    assert report.terms["code_matching"] > 0


def test_the_decoder_sees_embeddings_during_the_warm_up() -> None:
    state = fresh(configured("cmcm"))
    output = state.model(batch(0, state.config.modalities), continuous=True)
    for entry in output.quantized.values():
        assert torch.equal(entry.quantized, entry.semantic)


def test_the_codebook_starts_from_clusters_of_the_last_embeddings() -> None:
    config = with_overrides(configured("cmcm"), ["baselines.code_matching.warmup_vectors=100"])
    state = fresh(config)
    train(state, range(2))
    loss = state.losses.all()["code_matching"]
    assert isinstance(loss, CodeMatchingLoss)
    real = 3 * int(batch(0, config.modalities).mask.sum())
    assert loss.stored == 100 < 2 * real
    train(state, range(2, 3))
    quantizer = state.model.quantizer
    centres, counts = quantizer.codebook, quantizer.ema_count
    codes = nearest_code(loss.vectors, centres)
    for code in codes.unique():
        near = loss.vectors[codes == code]
        assert counts[code] == pytest.approx(max(1.0, len(near) * real / 3 / 100), rel=1e-5)
    spread = (loss.vectors - centres[codes]).square().sum()
    assert spread < (loss.vectors - loss.vectors.mean(0)).square().sum() / 2
    torch.testing.assert_close(quantizer.ema_weight, centres * counts[:, None])


def test_a_skipped_last_step_of_the_warm_up_does_not_lose_the_clusters() -> None:
    config = configured("cmcm")
    state = fresh(replace(config, optimizer=replace(config.optimizer, skip_nonfinite=1)))
    train(state, range(2))
    codebook = state.model.quantizer.codebook.clone()
    bad = batch(2, config.modalities)
    bad.features["audio"][1, 1] = torch.nan
    assert train_step(state, bad).skipped
    assert torch.equal(state.model.quantizer.codebook, codebook)
    report = train_step(state, batch(3, config.modalities))
    assert report.terms["commitment"] == report.terms["code_matching"] == 0  # not of random codes
    assert (state.model.quantizer.codebook - codebook).norm(dim=1).min() > 1


@pytest.mark.parametrize(
    ("name", "setting"), [("cmcm", "code_matching.warmup"), ("turn", "self_cross.mask_end")]
)
def test_a_schedule_over_a_run_of_unknown_length_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"baselines\.{setting}: expected the number of steps"):
        fresh(configured(name), steps=0)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_lie_apart_are_found(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    places = 50 * torch.randn(6, 4, generator=generator)
    vectors = (places[:, None] + torch.randn(6, 30, 4, generator=generator)).flatten(0, 1)
    centres, counts = kmeans(vectors, 6, generator)
    assert counts.tolist() == [30.0] * 6
    found = centres[nearest_code(places, centres)]
    torch.testing.assert_close(found, vectors.view(6, 30, 4).mean(1))


def test_clustering_ends_where_that_of_scikit_learn_does() -> None:
    from sklearn.cluster import KMeans

    vectors = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def from_one_start(rounds: int) -> Tensor:
        return kmeans(vectors, 7, torch.Generator().manual_seed(1), rounds)[0]

    found = KMeans(7, init=from_one_start(0).numpy(), n_init=1, tol=0, max_iter=300).fit(
        vectors.numpy()
    )
    torch.testing.assert_close(from_one_start(100), torch.from_numpy(found.cluster_centers_))


def test_fewer_vectors_than_clusters_repeat() -> None:
    vectors = torch.eye(3)
    centres, counts = kmeans(vectors, 5, torch.Generator().manual_seed(0))
    assert centres.isfinite().all()
    assert counts.sum() == 3
    assert {tuple(row) for row in centres.tolist()} == {tuple(row) for row in vectors.tolist()}


# --- settings that cannot go together ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("micu", "baselines.cpc.layers=1", "baselines.cpc: expected the defaults with weights.cpc"),
        ("dcid", "optimizer.double_forward=yes", "optimizer.double_forward: expected false"),
        ("dcid", "weights.reconstruction=none", "weights.reconstruction: expected a weight with"),
        ("dcid", "data.steps=2", "data.steps: expected at least 3 with weights.cpc, got 2"),
        ("turn", "quantizer.pool=no", "quantizer.pool: expected true with"),
        ("turn", "baselines.self_cross.memory=sequence", "codes of means; got true"),
        ("turn", "weights.self_cross=none", "codes of means; got true"),
        ("micu", "quantizer.pool=yes", "codes of means; got true"),
        ("codis", "weights.transport=0", "weights.transport: expected > 0 with quantizer.learning"),
        ("micu", "weights.transport=1", "quantizer.learning: expected gradient with"),
        ("codis", "weights.transport=none", "quantizer.learning: expected gradient with"),
        ("codis", "quantizer.reset=revive", "quantizer.reset: expected off with learning=gradient"),
        ("cmcm", "baselines.code_matching.warmup=1", "warmup: expected [0, 1), got 1.0"),
        ("turn", "baselines.self_cross.mask_end=2", "mask_end: expected (0, 1], got 2.0"),
        ("codis", "baselines.transport.epsilon=0", "epsilon: expected > 0, got 0.0"),
        ("codis", "baselines.transport.queue_size=0", "queue_size: expected at least 1, got 0"),
        ("dcid", "baselines.club.inner_steps=0", "inner_steps: expected at least 1, got 0"),
        ("dcid", "baselines.cpc.self_weight=-1", "self_weight: expected >= 0, got -1.0"),
        ("dcid", "weights.clip_club=1", "encoder.unify: expected clips with weights.clip_club"),
        ("fcid", "encoder.unify=steps", "encoder.unify: expected clips with weights.clip_club"),
        ("fcid", "weights.reconstruction=none", "expected a weight with weights.club or"),
        ("fcid", "weights.mmjp=1", "encoder.unify: expected steps with weights.mmjp, which"),
        ("fcid", "baselines.code_matching.warmup=0.5", "warmup: expected 0 with encoder.unify"),
        ("fcid", "quantizer.pool=yes", "codes of means; got true"),
        ("fcid", "optimizer.double_forward=yes", "optimizer.double_forward: expected false"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(
    name: str, assignment: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(PRESETS[name](), [assignment])
    assert message in str(caught.value)


def test_a_weight_may_be_taken_away_and_given_on_the_command_line() -> None:
    config = with_overrides(TrainConfig(), ["weights.jigsaw=none", "weights.cpc=0.5"])
    assert (config.weights.jigsaw, config.weights.cpc) == (None, 0.5)
    assert [name for name, _ in Losses(config).named_children()] == [
        *("fine", "coarse", "reconstruction", "commitment", "cpc")
    ]
    with pytest.raises(ConfigError, match=r"weights\.cpc: expected a finite number, got 'some'"):
        with_overrides(TrainConfig(), ["weights.cpc=some"])
