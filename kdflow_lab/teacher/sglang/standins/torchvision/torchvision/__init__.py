"""Stand-in for torchvision, which is imported for pictures and never run for text."""

import enum

from kdflow_lab.teacher.sglang import standin

__version__ = "0.28.0"
__getattr__ = standin.install(__name__)

import torchvision.transforms  # type: ignore[import-not-found]


class InterpolationMode(enum.Enum):
    """Its members are looked up where processors of pictures are defined."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


torchvision.transforms.InterpolationMode = InterpolationMode
