"""A package that adds backbone, data set, loss and task; and what it costs when it breaks."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import micu
from micu.base.errors import ConfigError, RegistryError
from micu.base.registry import Registry, load_plugin
from micu.config.overrides import with_overrides
from micu.config.sections import TrainConfig
from micu.evaluate.report import read_rows, write_rows
from micu.evaluate.tasks import TASKS, choose_task
from micu.losses import LOSSES
from micu.losses.terms import loss_weight
from micu.train.checkpoint import load_checkpoint
from tests.checkpoints import CONFIG
from tests.conftest import PROJECT, PYTHONPATH, not_on_windows
from tests.feature_sets import SMALL
from tests.media_files import tone, write_media, write_wav

EXAMPLE = PROJECT / "examples/plugin"


def install(source: Path, target: Path) -> Path:
    """Build a package and install it where only these tests look."""
    copy = shutil.copytree(source, target / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target / "site"), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(EXAMPLE, tmp_path_factory.mktemp("plugin"))


def type_in(site: Path | None, folder: Path, tool: str, *words: str) -> tuple[int, str]:
    entry = {"micu-extract": "micu_extract.cli:main", "micu-train": "micu.cli:train_main",
             "micu-eval": "micu.cli:eval_main"}[tool]  # fmt: skip
    module, _, name = entry.partition(":")
    code = f"import sys; sys.argv[0] = {tool!r}; from {module} import {name}; {name}()"
    path = os.pathsep.join([PYTHONPATH, *([str(site)] if site else [])])
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout


@not_on_windows
@pytest.mark.slow
def test_an_installed_package_is_listed_and_used_like_our_own(site: Path, tmp_path: Path) -> None:
    for i in range(6):
        write_wav(tmp_path / f"s{i}.wav", tone(2, 8000, 200 + 60 * i), 8000)
    lines = [f"s{i},{'ab'[i % 2]},{('train', 'test')[i // 4]}" for i in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["name,class,part", *lines, ""]))
    code, told = type_in(site, tmp_path, "micu-extract", "list")
    assert code == 0
    assert "example-loudness audio  (T, 2) of micu-example 0.1.0" in told
    made = ("manifest", "example-list", "--annotations", "list.csv", "-o", "m.csv")
    assert type_in(site, tmp_path, "micu-extract", *made)[0] == 0
    assert len(micu.read_manifest(tmp_path / "m.csv")) == 6
    words = ("audio", "m.csv", "--backbone", "example-loudness", "--decibels", "--device", "cpu")
    code, told = type_in(site, tmp_path, "micu-extract", *words)
    assert code == 0, told
    # A second modality, for a model needs two.
    shutil.copy(tmp_path / "m.csv", tmp_path / "v.csv")
    folder = tmp_path / "features/m/audio-example-loudness"
    feats = micu.FeatureSet(folder)
    assert feats.spec.versions["micu-example"] == "0.1.0"
    assert feats.spec.preprocessing["decibels"] is True
    assert feats["s1"].values.shape == (2, 2)
    record = json.loads((folder / "set.json").read_text())
    assert record["header"]["spec"]["versions"] == {"micu-example": "0.1.0"}


@not_on_windows
@pytest.mark.slow
def test_a_loss_and_a_task_of_a_package_run_and_a_checkpoint_opens_without_it(
    site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.feature_sets import make_clips, write_features

    write_features(tmp_path / "features", make_clips(24))
    settings = [word for entry in SMALL for word in ("--set", entry)]
    settings += ["--set", "weights.plugins=example-spread=0.5", "--set", "optimizer.max_steps=2"]
    words = ("--modalities", "v,a", *settings, "--out", "run", "--device", "cpu")
    code, told = type_in(site, tmp_path, "micu-train", *words)
    assert code == 0, told
    metrics = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert "example-spread" in metrics[0]
    task = ("example-coverage", "run/last.pt", "--pairs", "v:a", "--json", "--seeds", "1")
    code, told = type_in(site, tmp_path, "micu-eval", *task)
    assert code == 0, told
    assert '"covered"' in told
    few = ("--set", "at_least=99", "--out", "few.csv")
    code, told = type_in(site, tmp_path, "micu-eval", *task, *few)
    assert code == 0, told
    ((all_row,), (few_row,)) = (read_rows(tmp_path / name) for name in ("results.csv", "few.csv"))
    assert all_row.conditions.endswith(" micu-example:0.1.0 at_least:1")
    assert few_row.conditions.endswith(" micu-example:0.1.0 at_least:99")
    assert (all_row.value, few_row.value) == (1, 0)
    for idle in (("--ceiling",), ("--chance",), ("--setting", "ave")):
        code, told = type_in(site, tmp_path, "micu-eval", *task, *idle)
        assert code == 2
        assert f"{idle[0]}: only micu-eval" in told
    code, told = type_in(site, tmp_path, "micu-eval", *task, "--set", "at_leest=2")
    assert code == 2
    assert "--set at_leest: no key 'at_leest'; did you mean 'at_least'?" in told
    model = micu.load(tmp_path / "run", device="cpu")
    assert "loss 'example-spread' of the checkpoint is not known here" in caplog.text
    assert model.loaded.record["loss example-spread"] == "micu-example 0.1.0"
    assert len(model.embed({"video": tmp_path / "features/toy/video-toy_grid"})) == 24
    assert load_checkpoint(tmp_path / "run/last.pt").config.terms()[-1] == "example-spread"
    code, told = type_in(None, tmp_path, "micu-train", *words, "--resume")
    assert code == 2
    assert "unknown loss 'example-spread'" in told
    code, told = type_in(None, tmp_path, "micu-eval", *task)
    assert code == 2


@not_on_windows
@pytest.mark.slow
def test_a_stranger_s_encoder_gets_from_the_docs_to_the_board(site: Path, tmp_path: Path) -> None:
    """Every command of the tutorial, as it stands there."""
    for number in range(7):
        level, name = (number + 1) / 8, f"level{number}"
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(12):
            shown, heard = (min(1, level + 0.01 * (k - 6)) for k in (i, (5 * i) % 12))
            write_media(
                tmp_path / "clips" / name / f"{name}-{i}.mkv",
                frames=4,
                fps=2,
                picture=lambda _, x=shown: np.full((32, 32, 3), round(255 * x), np.uint8),
                sound=2 * heard * tone(2, 8000),
                rate=8000,
            )
    text = (PROJECT / "docs/plugins.md").read_text()
    block = text.partition("## A method of your own")[2].partition("```sh\n")[2]
    install, *commands = block.partition("```")[0].splitlines()
    assert install == "pip install ./examples/plugin"  # as `site` was made
    for line in commands:
        tool, *words = shlex.split(line)
        code, told = type_in(site, tmp_path, tool, *words)
        assert code == 0, told
    [row] = [
        line
        for line in (tmp_path / "leaderboard.md").read_text().splitlines()
        if "example-joint" in line and " hos " in line and "source-val" in line
    ]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["example-joint", "frozen:example-joint"]
    assert cells[8] == "5"
    assert "pretraining-overlap:unknown" in cells
    rows = read_rows(tmp_path / "submissions/example-joint/results.csv")
    fewer = tmp_path / "fewer.csv"
    write_rows([row for row in rows if row.seed != rows[0].seed], fewer)
    code, told = type_in(site, tmp_path, "micu-eval", "check", "fewer.csv")
    assert code == 3, told
    assert "expected 5 seeds or more" in told


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("backbone.py", "raise OSError('no licence')\n", "got OSError: no licence"),
        ("backbone.py", "class Loudness:\n    pass\n", "has no OPTIONS, gives, wants, encode"),
        ("backbone.py", "import nothing_of_that_name\n", "got ModuleNotFoundError"),
    ],
)
def test_a_package_that_breaks_costs_its_own_names_alone(
    tmp_path: Path, file: str, text: str, told: str
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    (tmp_path / "example/micu_example" / file).write_text(text)
    site = install(tmp_path / "example", tmp_path / "installed")
    code, shown = type_in(site, tmp_path, "micu-extract", "list")
    assert code == 0
    assert "swinv2" in shown
    assert "example-loudness audio" not in shown
    assert told in shown
    assert "pip uninstall micu-example. It is left out" in " ".join(shown.split())
    words = ("audio", "m.csv", "--backbone", "example-loudness")
    code, shown = type_in(site, tmp_path, "micu-extract", *words)
    assert code == 2
    assert told in shown
    assert "Traceback" not in shown


def test_a_file_adds_to_one_run(tmp_path: Path) -> None:
    plain = (EXAMPLE / "micu_example/backbone.py").read_text()
    file = tmp_path / "mine.py"
    file.write_text(
        plain.replace("class Loudness:", '@BACKBONES.register("mine")\nclass Loudness:').replace(
            "import (\n    Gives", "import (\n    BACKBONES,\n    Gives"
        )
    )
    code, told = type_in(None, tmp_path, "micu-extract", "list", "--plugin", "mine.py")
    assert code == 0, told
    assert "mine           audio  (T, 2) of mine.py sha256:" in told
    code, told = type_in(None, tmp_path, "micu-extract", "list", "--plugin", "none.py")
    assert code == 2
    assert "--plugin none.py: expected a file or a module of Python" in told
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="got ZeroDivisionError: division by zero; mend it"):
        load_plugin(str(tmp_path / "bad.py"))


def test_a_registry_of_this_project_alone_loads_nothing() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    assert dict(registry.items()) == {"one": 1}
    assert registry.makers == {}
    with pytest.raises(RegistryError, match="registered twice"):
        registry.register("one")(2)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("mine", "plugins: expected NAME=WEIGHT"),
        ("mine=x", "plugins: expected NAME=WEIGHT"),
        ("mine=-1", "plugins: expected NAME=WEIGHT"),
        ("mine=1,mine=2", "plugins: expected NAME=WEIGHT"),
        ("fine=1", "plugins: expected NAME=WEIGHT"),
    ],
)
def test_weights_of_plugins_are_checked(typed: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        with_overrides(TrainConfig(), [f"weights.plugins={typed}"])


def test_a_loss_of_a_plugin_has_the_weight_that_was_typed() -> None:
    config = with_overrides(CONFIG, ["weights.plugins=mine=0.25"])
    assert config.terms()[-1] == "mine"
    assert loss_weight(config.weights, "mine") == 0.25
    assert "mine" not in LOSSES


def test_a_task_of_this_project_has_no_settings_and_tells_of_no_package() -> None:
    task, told = choose_task("cmg", ())
    assert (task, told) == (TASKS["cmg"], [])
    with pytest.raises(ConfigError, match="--set at_least=1: cmg has no settings; leave it out"):
        choose_task("cmg", ("at_least=1",))
