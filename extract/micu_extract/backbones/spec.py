"""The spec of a loaded backbone's features: one place for what every shard header says."""

from dataclasses import asdict
from typing import Any

from micu.store.sets import FeatureSpec
from micu_extract.backbones.base import Backbone, Run, versions_of
from micu_extract.backbones.weights import Weights


def build_spec(
    name: str,
    backbone: Backbone,
    loaded: Weights,
    run: Run,
    preprocessing: dict[str, Any],
    *packages: str,
) -> FeatureSpec:
    """What a loaded backbone's features are and what makes them, for the shard header.

    Args:
        name: Of the features.
        backbone: Its `gives` and `wants` are final.
        loaded: Its weights.
        run: How it runs.
        preprocessing: What is done beside what the input spec says.
        *packages: Those whose versions can change a number.
    """
    return FeatureSpec(
        backbone=name,
        modality=backbone.gives.modality,
        shape=backbone.gives.shape,
        hop_s=backbone.gives.hop_s,
        weights=loaded.source,
        weights_sha256=loaded.sha256,
        preprocessing={
            "input": asdict(backbone.wants),
            **preprocessing,
            "precision": run.precision,
            "compiled": run.compile,
        },
        versions=versions_of(*packages),
    )
