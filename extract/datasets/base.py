"""What a data set is to us: a function from its official annotation file to manifest rows."""

from collections.abc import Callable
from pathlib import Path

from micu.manifest import Clip
from micu.registry import Registry

Builder = Callable[[Path], list[Clip]]

DATASETS: Registry[Builder] = Registry("data set")
