"""The 1,797 handwritten digits in scikit-learn, for machines without internet access.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. The 8 x 8 images with
levels 0 to 16 are scaled bilinearly to 28 x 28 and 0 to 255, to fit the networks for Fashion-MNIST. scikit-learn
defines no test set; a stratified quarter of the images, drawn with a fixed seed, serves as one.
"""

import torch
import torch.nn.functional as F

from casemate.data.dataset import Dataset, LabelledImages, split
from casemate.errors import missing_extra

_SIDE = 28
_TEST = 450
_SPLIT_SEED = 8


def load() -> Dataset:
    """Return the digits: 1,347 training and 450 test images, uint8, 1 x 28 x 28.

    Raises `MissingExtraError` if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # slow to import, and needed only here
    except ImportError as error:
        raise missing_extra("the data set digits", "study") from error

    bunch = load_digits()
    small = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) * (255 / 16)  # pyright: ignore[reportAttributeAccessIssue]
    large = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    images = LabelledImages(
        pixels=large.round().clamp(0, 255).to(torch.uint8),
        labels=torch.as_tensor(bunch.target, dtype=torch.int64),  # pyright: ignore[reportAttributeAccessIssue]
    )
    train, test = split(images, _TEST, _SPLIT_SEED)
    return Dataset(
        name="digits",
        title="scikit-learn digits",
        classes=tuple(str(digit) for digit in range(10)),
        train=train,
        test=test,
        origin="scikit-learn",
    )
