"""Known scores: against pytorch-ood and scikit-learn, against loops, and what they may look at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pytorch_ood import detector
from sklearn.covariance import ledoit_wolf

from micu.base.errors import ConfigError, RegistryError
from micu.evaluate.code_scores import CODE_SCORES
from micu.evaluate.feature_scores import shrunk_covariance
from micu.evaluate.metrics import auroc
from micu.evaluate.scores import SCORES, Evidence, Fitting

CLASSES, WIDTH, STEPS, CODES = 3, 8, 4, 12


def evidence(pooled: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> Evidence:
    errors = np.random.default_rng(len(pooled)).random(codes.shape)
    return Evidence(
        modality="audio",
        logits=pooled @ weight.T + 0.1,
        pooled=pooled,
        mask=np.ones(codes.shape, bool),
        codes=codes,
        errors=errors,
    )


@pytest.fixture
def fitting() -> Fitting:
    """Three classes around three directions, each with codes of its own."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    weight = np.eye(CLASSES, WIDTH) * 3
    pooled = weight[labels] + random.normal(size=(60, WIDTH)) * 0.3
    codes = labels[:, None] * 3 + random.integers(0, 3, (60, STEPS))
    train = evidence(pooled, codes, weight)
    assert train.errors is not None
    return Fitting(
        train=train,
        labels=labels,
        weight=weight,
        bias=np.full(CLASSES, 0.1),
        codebook_size=CODES,
        errors={"audio": train.errors.ravel(), "video": train.errors.ravel() * 5 + 2},
    )


@pytest.fixture
def known(fitting: Fitting) -> Evidence:
    """Clips as the training clips are."""
    random = np.random.default_rng(7)
    labels = np.arange(30) % CLASSES
    pooled = fitting.weight[labels] + random.normal(size=(30, WIDTH)) * 0.3
    codes = labels[:, None] * 3 + random.integers(0, 3, (30, STEPS))
    return evidence(pooled, codes, fitting.weight)


@pytest.fixture
def unknown(fitting: Fitting) -> Evidence:
    """Clips in a direction of their own, with codes that training has not and larger errors."""
    random = np.random.default_rng(8)
    pooled = np.eye(WIDTH)[[-1] * 30] * 3 + random.normal(size=(30, WIDTH)) * 0.3
    clips = evidence(pooled, np.full((30, STEPS), CODES - 1), fitting.weight)
    return replace(clips, errors=clips.errors + 1)


@pytest.mark.parametrize("name", list(SCORES))
def test_every_score_is_higher_for_clips_like_those_of_training(
    name: str, fitting: Fitting, known: Evidence, unknown: Evidence
) -> None:
    score = SCORES[name](fitting)
    inside, outside = score(known), score(unknown)
    assert inside.shape == (30,)
    assert np.isfinite(inside).all()
    assert auroc(inside, outside) > 0.95


def test_the_scores_are_a_checked_list() -> None:
    assert set(SCORES) == {
        *("msp", "max_logit", "energy", "entropy", "knn", "mahalanobis", "relative_mahalanobis"),
        *("vim", "quantization_error", "code_likelihood", "class_code_likelihood"),
    }
    with pytest.raises(RegistryError, match="did you mean 'entropy'"):
        SCORES["entrop"]


@pytest.mark.parametrize("name", ["msp", "max_logit", "energy", "entropy"])
def test_scores_of_logits_stand_large_ones(name: str, fitting: Fitting, known: Evidence) -> None:
    large = replace(known, logits=np.array([[1e4, 0.0]] * 30))
    assert np.isfinite(SCORES[name](fitting)(large)).all()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("max_logit", detector.MaxLogit),
        ("msp", detector.MaxSoftmax),
        ("energy", detector.EnergyBased),
        ("entropy", detector.Entropy),
    ],
)
def test_scores_of_logits_are_those_of_pytorch_ood(
    name: str, theirs: type, fitting: Fitting, known: Evidence
) -> None:
    expected = -theirs.score(torch.from_numpy(known.logits))
    assert SCORES[name](fitting)(known) == pytest.approx(expected.numpy(), rel=1e-5)


def test_neighbours_are_those_of_pytorch_ood(fitting: Fitting, known: Evidence) -> None:
    theirs = detector.KNN(None, k=10)
    theirs.fit_features(torch.from_numpy(fitting.train.pooled), torch.from_numpy(fitting.labels))
    expected = -(theirs.predict_features(torch.from_numpy(known.pooled)).numpy() ** 2)
    assert SCORES["knn"](fitting)(known) == pytest.approx(expected, abs=1e-9)


def test_virtual_logits_are_those_of_pytorch_ood(fitting: Fitting, known: Evidence) -> None:
    weight, bias = torch.from_numpy(fitting.weight), torch.from_numpy(fitting.bias)
    theirs = detector.ViM(None, d=WIDTH // 4, w=weight, b=bias)
    theirs.fit_features(torch.from_numpy(fitting.train.pooled), torch.from_numpy(fitting.labels))
    expected = -theirs.predict_features(torch.from_numpy(known.pooled)).numpy()
    assert SCORES["vim"](fitting)(known) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs", "factor"),
    [("mahalanobis", detector.Mahalanobis, 2), ("relative_mahalanobis", detector.RMD, 1)],
)
def test_distances_are_those_of_pytorch_ood_with_its_covariance(
    name: str,
    theirs: type,
    factor: int,  # it halves the distance to a class
    fitting: Fitting,
    known: Evidence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "micu.evaluate.feature_scores.shrunk_covariance", lambda x: x.T @ x + 1e-6 * np.eye(WIDTH)
    )
    peer = theirs(None)
    peer.fit_features(
        torch.from_numpy(fitting.train.pooled).float(), torch.from_numpy(fitting.labels)
    )
    expected = -factor * peer.predict_features(torch.from_numpy(known.pooled).float()).numpy()
    assert SCORES[name](fitting)(known) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("rows", "width"), [(20, 5), (6, 30), (400, 3)])
def test_the_shrunk_covariance_is_that_of_scikit_learn(rows: int, width: int) -> None:
    random = np.random.default_rng(rows)
    centred = random.normal(size=(rows, width)) * np.arange(1, width + 1)
    expected, _ = ledoit_wolf(centred, assume_centered=True)
    assert shrunk_covariance(centred) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_class_that_no_training_clip_has_is_no_obstacle(
    fitting: Fitting, known: Evidence
) -> None:
    sparse = replace(fitting, labels=np.where(fitting.labels == 1, 2, fitting.labels))
    for name, fit in SCORES.items():
        assert np.isfinite(fit(sparse)(known)).all(), name


def test_quantisation_errors_are_standardised_by_modality(
    fitting: Fitting, known: Evidence
) -> None:
    score = SCORES["quantization_error"](fitting)
    assert known.errors is not None
    as_video = replace(known, modality="video", errors=known.errors * 5 + 2)
    assert score(as_video) == pytest.approx(score(known))
    assert not np.allclose(score(replace(known, modality="video")), score(known))


def test_code_likelihoods_are_those_of_a_loop(fitting: Fitting, known: Evidence) -> None:
    assert fitting.train.codes is not None
    assert known.codes is not None
    pools = {"code_likelihood": [fitting.train.codes]}
    pools["class_code_likelihood"] = [
        fitting.train.codes[fitting.labels == label] for label in range(CLASSES)
    ]
    for name, groups in pools.items():
        expected = []
        for clip in known.codes:
            by_group = []
            for group in groups:
                seen = group.ravel().tolist()
                chances = [(seen.count(code) + 1) / (len(seen) + CODES) for code in clip]
                by_group.append(float(np.mean(np.log(chances))))
            expected.append(max(by_group))
        assert SCORES[name](fitting)(known) == pytest.approx(expected)


@pytest.mark.parametrize("name", CODE_SCORES)
def test_steps_that_are_not_real_do_not_count(name: str, fitting: Fitting, known: Evidence) -> None:
    assert known.codes is not None
    assert known.errors is not None
    mask = known.mask.copy()
    mask[:, -1] = False
    codes, errors = known.codes.copy(), known.errors.copy()
    codes[:, -1], errors[:, -1] = CODES - 1, 1e6
    score = SCORES[name](fitting)
    padded = score(replace(known, mask=mask, codes=codes, errors=errors))
    cut = replace(
        known,
        mask=known.mask[:, :-1],
        codes=known.codes[:, :-1],
        errors=known.errors[:, :-1],
    )
    assert padded == pytest.approx(score(cut))


@pytest.mark.parametrize("name", CODE_SCORES)
def test_a_score_of_codes_without_codes_says_what_to_do(name: str, fitting: Fitting) -> None:
    bare = replace(fitting, train=replace(fitting.train, codes=None, errors=None), errors={})
    with pytest.raises(ConfigError, match="the encoder gives no codes"):
        SCORES[name](bare)
