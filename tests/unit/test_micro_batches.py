"""A step in micro-batches, and the pure parts of a step in several processes."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from micu.base.errors import ConfigError
from micu.base.files import write_atomically
from micu.cli.train import RunFolder
from micu.config.overrides import to_json, with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.data.dataset import FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.losses import Loss, compute_terms, draw, weigh
from micu.train.processes.micro_batches import cut_batch, measure_share
from micu.train.processes.place import LAUNCHER, Place
from micu.train.processes.world import ALONE, World
from micu.train.step import build_state, train_step
from tests.feature_sets import SHAPES, SMALL, make_clips, write_features
from tests.processes import CASES, DOUBLE, NO_DROPOUT, VAT, Case, make_batch, run_case

MICRO = "optimizer.micro_batch=2"


def grown(config, batch, draws=None):
    """Gradients after one step without clipping, and what the step says."""
    settings = replace(config.optimizer, grad_clip=1e9)
    state = build_state(
        replace(config, optimizer=settings), {n: SHAPES[n] for n in config.modalities}, "cpu"
    )
    report = train_step(state, batch, draws)
    parameters = [*state.model.named_parameters(), *state.losses.named_parameters()]
    return {n: p.grad for n, p in parameters if p.grad is not None}, report, state


# --- micro-batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if NO_DROPOUT in case.settings]
)
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_have_the_loss_and_gradients_of_the_batch(name, size):
    case = CASES[name]
    batch = make_batch(case, 0)
    whole = replace(case.config, optimizer=replace(case.config.optimizer, micro_batch=0))
    config = replace(whole, optimizer=replace(whole.optimizer, micro_batch=size))
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    if config.optimizer.dtype == "float64":
        tolerance = {"rtol": 1e-9, "atol": 1e-12}

    expected, told, one = grown(whole, batch)
    found, told_too, other = grown(config, batch)

    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **tolerance, msg=lambda m, k=key: f"{k}: {m}")
    for key, value in one.model.quantizer.state_dict().items():
        torch.testing.assert_close(other.model.quantizer.state_dict()[key], value, **tolerance)
    assert asdict(told_too)["terms"] == pytest.approx(told.terms, rel=tolerance["rtol"])
    assert told_too.total == pytest.approx(told.total, rel=tolerance["rtol"])
    assert (told_too.active_codes, told_too.clips) == (told.active_codes, told.clips)


def test_a_micro_batch_drops_the_same_when_it_is_run_again():
    case = Case((VAT, DOUBLE, "encoder.dropout=0.3", MICRO, "optimizer.grad_clip=1000000"))
    batch, config = make_batch(case, 0), case.config
    draws = draw(config, 6, batch.mask.shape[1], seed=1, step=0, device="cpu")
    found, report, _ = grown(config, batch, draws)

    state = build_state(config, {name: SHAPES[name] for name in config.modalities}, "cpu")
    state.model.train()
    share = measure_share(ALONE, batch.mask)
    parted = cut_batch(batch, draws, share, ALONE, config, "forward 0/0")
    coarse = state.losses.get_submodule("coarse")
    total, summaries = torch.zeros((), dtype=torch.float64), []
    for part in parted.parts:  # all with their graphs at once
        output = part.run(state.model, True)
        summaries.append(coarse.summarize(output, part.batch, part.draws))
        names = ["fine", "jigsaw", "reconstruction", "commitment"]
        terms = compute_terms(output, part.batch, state.losses, part.draws, names)
        total = total + weigh(terms, config.weights).total * len(part.batch.mask) / 6
    total = total + coarse.compare(torch.cat(summaries), batch.mask.any(-1))
    total.backward()

    assert len(parted.parts) == 3
    assert report.total == pytest.approx(total.item(), rel=1e-9)
    for key, parameter in state.model.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "world", "expected"),
    [(0, ALONE, False), (6, ALONE, False), (5, ALONE, True), (0, World(0, 2), True)],
)
def test_a_step_goes_over_parts_where_there_are_several(size, world, expected):
    config = Case((VAT, f"optimizer.micro_batch={size}")).config
    shapes = {name: SHAPES[name] for name in config.modalities}
    state = build_state(config, shapes, "cpu", world=world)
    assert state.is_in_parts(make_batch(Case((VAT,)), 0)) is expected


def test_micro_batches_as_large_as_the_batch_change_no_bit():
    case = Case((VAT,), steps=2)
    one = run_case(case)
    other = run_case(replace(case, settings=(VAT, "optimizer.micro_batch=6")))
    assert all(torch.equal(one.state[key], value) for key, value in other.state.items())
    assert one.reports == other.reports


def test_a_run_in_micro_batches_depends_on_nothing_but_its_configuration():
    case = Case((VAT, MICRO), steps=3)
    one = run_case(case)
    torch.rand(5)
    assert run_case(case).reports == one.reports


def test_a_loss_that_does_not_say_how_it_adds_up_is_refused(monkeypatch):
    config = with_overrides(TrainConfig(), [*SMALL, VAT])
    shapes = {name: SHAPES[name] for name in config.modalities}
    monkeypatch.setattr("micu.losses.jigsaw.JigsawLoss.mean_over", Loss.mean_over)

    build_state(config, shapes, "cpu")
    for settings, world in ((MICRO, ALONE), ("seed=1", World(0, 2))):
        with pytest.raises(ConfigError, match=r"weights\.jigsaw: cannot be added up"):
            build_state(with_overrides(config, [settings]), shapes, "cpu", world=world)


@pytest.mark.parametrize("hook", ["fit_estimators_", "after_step_", "is_continuous"])
def test_a_loss_whose_hooks_no_part_would_call_is_refused(hook, monkeypatch):
    config = with_overrides(TrainConfig(), [*SMALL, VAT])
    shapes = {name: SHAPES[name] for name in config.modalities}
    monkeypatch.setattr(f"micu.losses.jigsaw.JigsawLoss.{hook}", lambda *_: False, raising=False)

    build_state(config, shapes, "cpu")
    with pytest.raises(ConfigError, match=r"weights\.jigsaw: cannot be added up"):
        build_state(with_overrides(config, [MICRO]), shapes, "cpu")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_spread_or_refused_by_the_name_of_a_setting(preset):
    refused = {
        "dcid": "weights.club",
        "cmcm": "weights.code_matching",
        "turn": "weights.self_cross",
        "codis": "quantizer.learning",
        "fcid": "encoder.unify=clips",
    }
    config = with_overrides(PRESETS[preset](), [*SMALL, MICRO, "data.steps=10"])
    shapes = {name: SHAPES[name] for name in config.modalities}
    if preset in refused:
        with pytest.raises(ConfigError, match=refused[preset]):
            build_state(config, shapes, "cpu", steps=10)
    else:
        build_state(config, shapes, "cpu", steps=10)


# --- shares --------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 9))
def test_processes_share_the_rows_in_order_and_evenly(rows, size):
    shares = [World(rank, size).rows(rows) for rank in range(size)]
    taken = [list(range(rows))[share] for share in shares]
    assert [row for share in taken for row in share] == list(range(rows))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.mark.parametrize(
    "settings", [(), ("jigsaw.block_draw=row", "contrastive.mask_axis=feature")]
)
def test_clips_draw_the_same_wherever_they_are(settings):
    config = with_overrides(TrainConfig(), [*SMALL, VAT, *settings])
    whole = draw(config, 6, 5, seed=3, step=4, device="cpu")
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6)):
        part = whole.part(rows, 5)
        assert torch.equal(part.keep, whole.keep[rows])
        expected = whole.block_modality
        if settings:
            expected = expected[rows.start * 5 : rows.stop * 5]
        assert torch.equal(part.block_modality, expected)


@pytest.mark.parametrize("off", ["jigsaw.splits=0", "weights.jigsaw=none"])
@pytest.mark.parametrize("how", ["jigsaw.block_draw=row", "jigsaw.labels=sampled"])
def test_a_run_without_jigsaw_draws_nothing_for_it(off, how):
    config = with_overrides(TrainConfig(), [*SMALL, VAT, MICRO, off, how])
    draws = draw(config, 6, 5, seed=3, step=4, device="cpu")
    assert draws.block_modality.numel() == 0
    assert draws.labels is None
    state = build_state(config, {name: SHAPES[name] for name in config.modalities}, "cpu")
    assert "jigsaw" not in train_step(state, make_batch(Case((VAT,)), 0)).terms


@pytest.mark.parametrize("size", [2, 3])
def test_the_loaders_of_all_processes_read_the_batches_of_one(tmp_path, size):
    from micu.cli.features import find_feature_sets

    write_features(tmp_path / "features", make_clips(9))  # batches of 4, 4 and 1
    config = with_overrides(TrainConfig(), [*SMALL, VAT])
    sets = find_feature_sets(tmp_path / "features", config.modalities, None, {})
    dataset = FeatureDataset(sets.stores, sets.manifest.clips, config.data)

    def read(world):
        return list(iterate(make_loader(dataset, 4, seed=1, epoch=0, start=1, own_rows=world.rows)))

    shares = [read(World(rank, size)) for rank in range(size)]
    for i, batch in enumerate(read(ALONE)):
        parts = [share[i] for share in shares]
        assert sum((part.clip_ids for part in parts), ()) == batch.clip_ids
        assert torch.equal(torch.cat([part.mask for part in parts]), batch.mask)
        for name, values in batch.features.items():
            assert torch.equal(torch.cat([part.features[name] for part in parts]), values)


# --- one torchrun, one run -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "overwrite", "goes_on"),
    [("mine", False, True), ("mine", True, True), ("other", True, False), (None, True, False)],
)
def test_only_the_run_of_the_same_torchrun_is_gone_on_with(tmp_path, mark, overwrite, goes_on):
    config = TrainConfig()
    write_atomically(tmp_path / "config.json", to_json(config).encode())
    write_atomically(tmp_path / "last.pt", b"")
    if mark is not None:
        write_atomically(tmp_path / LAUNCHER, mark.encode())
    folder = RunFolder(tmp_path, False, overwrite, Place(launcher="mine"))

    assert folder.find_begun(config) == (str(tmp_path / "last.pt") if goes_on else "")


def test_a_run_of_another_torchrun_is_refused_as_ever(tmp_path):
    config = TrainConfig()
    write_atomically(tmp_path / "config.json", to_json(config).encode())
    write_atomically(tmp_path / LAUNCHER, b"other")

    for launcher in ("mine", ""):
        with pytest.raises(ConfigError, match="holds a run already"):
            RunFolder(tmp_path, False, False, Place(launcher=launcher)).find_begun(config)
