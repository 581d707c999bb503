"""A model that knows what it was trained on, as far as a test says."""

from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.model.micu import MICU
from micu.train.checkpoint import LoadedModel
from tests.feature_sets import SHAPES, SMALL


def loaded_model(**record: object) -> LoadedModel:
    """A small untrained model of audio, video and text."""
    config = with_overrides(PRESETS["micu"](), [*SMALL, "modalities=audio,video,text"])
    model = MICU(config, {name: SHAPES[name] for name in config.modalities}).eval()
    return LoadedModel(
        model=model, config=config, step=0, specs={}, sha256="a" * 64, record=dict(record)
    )
