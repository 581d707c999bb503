"""VGGish: a narrow VGG over log-mel patches, and the whitening that may follow it.

Reference: Hershey et al., CNN architectures for large-scale audio classification, ICASSP 2017; the
released network is tensorflow/models `research/audioset/vggish`. Tensor names are those of
harritaylor/torchvggish, whose converted weights load as they are.
"""

import torch
from torch import Tensor, nn

CONVOLUTIONS: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))
"""Output channels of the convolutions before each halving of the patch."""
FRAMES, BANDS, SIZE = 96, 64, 128
"""Of a patch in time and frequency, and of the embedding."""
CLIP = 2.0
"""A whitened value is cut off at minus and plus this."""


class VGGishNetwork(nn.Module):
    """Patches (B, 1, 96, 64) to embeddings (B, 128).

    Args:
        hidden: Width of the two hidden linear layers.
        relu: End in a ReLU.
        pca: Hold the whitening too, as `pca`; `forward` does not apply it.
    """

    def __init__(self, hidden: int = 4096, *, relu: bool = True, pca: bool = False) -> None:  # noqa: D107
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for block in CONVOLUTIONS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        flat = channels * FRAMES * BANDS // 4 ** len(CONVOLUTIONS)
        linear = [nn.Linear(flat, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, SIZE)]
        relus = [nn.ReLU(inplace=True) for _ in linear]
        pairs = [layer for pair in zip(linear, relus, strict=True) for layer in pair]
        self.embeddings = nn.Sequential(*(pairs if relu else pairs[:-1]))
        self.pca = Whitening() if pca else None
        with torch.no_grad():
            for layer in (*self.features, *self.embeddings):
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    # To He's scale from PyTorch's, under which a ReLU network's output is nearly
                    # that of its biases, whatever it hears.
                    layer.weight.mul_(6.0**0.5)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches; see the class."""
        x = self.features(patches)  # (B, 512, 6, 4)
        # TensorFlow, where the weights come from, flattens time, frequency, channel.
        embedding: Tensor = self.embeddings(x.permute(0, 2, 3, 1).flatten(1))
        return embedding


class Whitening(nn.Module):
    """The postprocessing of the embeddings that AudioSet released, (B, 128) to (B, 128).

    A principal component analysis that whitens, then 8-bit levels, 0 to 255, of [-2, 2].

    Differs: as in torchvggish, a level is rounded to the nearest; TensorFlow's script cuts off.
    """

    pca_eigen_vectors: Tensor
    """(128, 128), one component per row"""
    pca_means: Tensor
    """(128,)"""

    def __init__(self) -> None:  # noqa: D107
        super().__init__()
        self.register_buffer("pca_eigen_vectors", nn.init.orthogonal_(torch.empty(SIZE, SIZE)))
        self.register_buffer("pca_means", torch.zeros(SIZE))

    def levels(self, embeddings: Tensor) -> Tensor:
        """Whole numbers from 0 to 255, as float."""
        whitened = (embeddings - self.pca_means) @ self.pca_eigen_vectors.T
        return ((whitened.clamp(-CLIP, CLIP) + CLIP) * (255.0 / (2 * CLIP))).round()
