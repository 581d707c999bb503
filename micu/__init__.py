"""MICU: unified discrete representations of video, audio, flow and text (ICCV 2025).

`micu` owns the contract (manifests and feature shards), trains the model and evaluates it. It never
imports `micu_extract`, and importing it loads nothing heavy.
"""

__version__ = "0.1.0"
