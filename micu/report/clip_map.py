"""Clips in the plane: t-SNE where scikit-learn is installed, else exact PCA; the report says which.

PCA keeps the two directions in which the vectors differ most, so distances are never larger than
they were. t-SNE keeps neighbourhoods and bends the rest.
"""

import importlib.util

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ExtraError

METHODS = ("auto", "tsne", "pca")
FEW = 8
PERPLEXITY = 30.0
"""About how many neighbours t-SNE keeps near."""


def place_clips(
    vectors: NDArray[np.floating], method: str = "auto"
) -> tuple[NDArray[np.float64], str]:
    """Coordinates of each vector in the plane, (m, 2), and the method's name.

    Args:
        vectors: (m, D), m of 1 or more.
        method: `tsne`, `pca`, or `auto`: t-SNE if scikit-learn is installed. Fewer than 8 vectors,
            and vectors that are all the same, are placed by PCA in any case.

    Raises:
        ExtraError: t-SNE was asked for by name, and scikit-learn is not installed.
    """
    if method == "tsne" and not has_tsne():
        raise ExtraError("scikit-learn", "report")
    plane = principal_plane(vectors)
    spread = float(plane[:, 0].std())
    if method == "pca" or not has_tsne() or len(vectors) < FEW or spread == 0:
        return plane, "PCA"
    return _tsne(vectors, plane / spread * 1e-4), "t-SNE"


def has_tsne() -> bool:
    """Whether scikit-learn is installed; it is not imported for that."""
    return importlib.util.find_spec("sklearn") is not None


def principal_plane(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates along the two first principal directions, (m, 2), from (m, D).

    The sign of a direction is chosen so that its largest entry is positive. Directions that the
    vectors do not have are 0.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((2, centred.shape[1]))
    plane[: min(2, len(directions))] = directions[:2]
    largest = plane[np.arange(2), np.abs(plane).argmax(1)]
    result: NDArray[np.float64] = centred @ (plane * np.where(largest < 0, -1, 1)[:, None]).T
    return result


def _tsne(vectors: NDArray[np.floating], start: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=0)
    result: NDArray[np.float64] = model.fit_transform(vectors).astype(np.float64)
    return result
