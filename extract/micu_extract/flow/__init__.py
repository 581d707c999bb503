"""Optical flow of two pictures, its methods and its 8-bit form."""

from micu_extract.flow.tvl1 import ENGINES, TVL1, tvl1_flow, tvl1_pairs

__all__ = ["ENGINES", "TVL1", "tvl1_flow", "tvl1_pairs"]
