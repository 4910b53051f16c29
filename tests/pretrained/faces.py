"""A convolutional network: R-Net of MTCNN, which tells faces from other patches of photographs.

K. Zhang et al., Joint face detection and alignment using multi-task cascaded convolutional networks, 2016,
arXiv 1604.02878. Weights from ``mtcnn``; 100 faces and 100 other patches of "Labeled faces in the wild"
from ``scikit-image``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.pretrained.packages import folder
from tests.pretrained.task import Task, copy_weights

SIZE = 24
ORDER = tuple(
    f"{layer}.{part}"
    for layer, *parts in (
        ("features.0", "weight", "bias"),
        ("features.1", "weight"),
        ("features.3", "weight", "bias"),
        ("features.4", "weight"),
        ("features.6", "weight", "bias"),
        ("features.7", "weight"),
        ("hidden.0", "weight", "bias"),
        ("hidden.1", "weight"),
        ("box", "weight", "bias"),
        ("is_face", "weight", "bias"),
    )
    for part in parts
)


class FaceNet(nn.Module):
    """R-Net, without its second output, the box around the face."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 28, 3),
            nn.PReLU(28),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(28, 48, 3),
            nn.PReLU(48),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(48, 64, 2),
            nn.PReLU(64),
        )
        self.hidden = nn.Sequential(nn.Linear(64 * 3 * 3, 128), nn.PReLU(128))
        self.is_face = nn.Linear(128, 2)

    def forward(self, images: Tensor) -> Tensor:
        # Width before height before channels: the order of the first implementation, in Caffe and MATLAB.
        return self.is_face(self.hidden(self.features(images).permute(0, 3, 2, 1).flatten(1)))


def weights() -> dict[str, Tensor]:
    """The arrays of the package, which are in TensorFlow's layout, by our names."""
    import joblib

    arrays = joblib.load(folder("mtcnn") / "assets" / "weights" / "rnet.lz4")
    named = {name: _to_torch(torch.from_numpy(array)) for name, array in zip(ORDER, arrays, strict=True)}
    return {name: value for name, value in named.items() if not name.startswith("box.")}


def _to_torch(value: Tensor) -> Tensor:
    if value.ndim == 4:  # A convolution: height, width, in, out.
        return value.permute(3, 2, 0, 1).contiguous()
    return value.T.contiguous() if value.ndim == 2 else value.flatten()


def load() -> Task:
    """The network and the 200 patches, the faces first."""
    from skimage.data import lfw_subset

    grey = torch.from_numpy(lfw_subset()).float()[:, None, :SIZE, :SIZE]
    images = ((grey * 255 - 127.5) / 128).expand(-1, 3, -1, -1).contiguous()
    faces = torch.arange(len(images)) < 100
    model = copy_weights(FaceNet(), weights())
    return Task(model, (images,), lambda logits: (logits.argmax(dim=1) == 1) == faces)
