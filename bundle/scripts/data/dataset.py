"""Image pairs as a torch dataset: every image is preprocessed once, pairs are put together from the cache."""

from collections.abc import Callable, Mapping, Sequence

import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandomizableTrait

from ..errors import InputError
from ..formats.images import read_image, read_label
from ..synthetic.seeded import SeededDataset


class PairDataset(SeededDataset):
    """Pairs of preprocessed images.

    An item is a dict with `fixed`, `moving` (float32 MetaTensors (1, D, H, W), as `transform` leaves them), `name`,
    and `fixed_label`, `moving_label` (1, D, H, W) where the pair has them. MONAI's `DataLoader` collates items.

    Args:
        data: pair dicts with `fixed`, `moving`, `name` and perhaps `fixed_label`, `moving_label` (see `pairs`).
        transform: per-image preprocessing on a dict with `image` and, if the image has one, `label`: load, orient,
            resample to the network grid, normalise. It must not be random.
        cache: keep every distinct image preprocessed in memory; otherwise preprocess at every access.
        augment: MONAI transform of the finished pair dict; if random, reseeded from (seed, epoch, index).
        seed: of the augmentation.

    Raises:
        InputError: no pairs, an image with two labels, a file that fails its check, or preprocessing that does not give
            finite volumes (1, D, H, W) of one size.
        ValueError: `transform` is random.
    """

    def __init__(
        self,
        data: Sequence[Mapping],
        transform: Callable,
        cache: bool = True,
        augment: Callable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, augment)
        if not data:
            raise InputError("data: the list of pairs is empty; give at least one pair")
        self.data = [dict(pair) for pair in data]
        _reject_random(transform)
        images = self._distinct_images()
        for item in images:
            image = read_image(item["image"])
            if "label" in item:
                read_label(item["label"], image)
        self._number = {item["image"]: number for number, item in enumerate(images)}
        self._checked = cache
        if cache:
            self._images = CacheDataset(images, transform, num_workers=1)
            for number, item in enumerate(images):
                _check_preprocessed(self._images[number], item["image"])
        else:
            self._images = Dataset(images, transform)

    def _distinct_images(self) -> list[dict]:
        images: dict[str, dict] = {}
        for pair in self.data:
            for role in ("fixed", "moving"):
                path, label = str(pair[role]), pair.get(f"{role}_label")
                item = images.setdefault(path, {"image": path})
                if label is not None and item.setdefault("label", str(label)) != str(label):
                    raise InputError(f"{path}: two labels, {item['label']} and {label}; give one label to one image")
        return list(images.values())

    def __len__(self) -> int:
        return len(self.data)

    def item(self, key: tuple[int, int, int]) -> dict:
        """The pair of an index, from the cache or preprocessed now."""
        pair = self.data[key[2]]
        item: dict = {}
        for role in ("fixed", "moving"):
            image = self._images[self._number[str(pair[role])]]
            if not self._checked:
                _check_preprocessed(image, str(pair[role]))
            # A clone, because whoever changes an item in place must not change the cache.
            item[role] = image["image"].clone()
            if pair.get(f"{role}_label") is not None:
                item[f"{role}_label"] = image["label"].clone()
        if item["fixed"].shape != item["moving"].shape:
            raise InputError(
                f"{pair['moving']}: preprocessed shape {tuple(item['moving'].shape)} differs from "
                f"{tuple(item['fixed'].shape)} of {pair['fixed']}; end the preprocessing with a common grid size"
            )
        return {**item, "name": pair["name"]}


def _reject_random(transform: Callable) -> None:
    steps = transform.flatten().transforms if isinstance(transform, Compose) else (transform,)
    for step in steps:
        if isinstance(step, RandomizableTrait):
            raise ValueError(f"transform: {type(step).__name__} is random; move it to augment")


def _check_preprocessed(item: Mapping, path: str) -> None:
    """InputError unless the preprocessed image and label are finite volumes (1, D, H, W) on one grid."""
    image, shapes = item["image"], [tuple(item[key].shape) for key in ("image", "label") if key in item]
    if image.ndim != 4 or image.shape[0] != 1:
        raise InputError(f"{path}: preprocessed to shape {shapes[0]}; the transform must give (1, D, H, W)")
    if len(set(shapes)) > 1:
        raise InputError(
            f"{path}: preprocessed image {shapes[0]} and label {shapes[1]} differ; use both keys throughout"
        )
    if image.dtype != torch.float32:
        raise InputError(f"{path}: preprocessed to {image.dtype}; let the transform end in float32")
    if not torch.isfinite(torch.as_tensor(image)).all():
        raise InputError(f"{path}: preprocessing gave NaN or Inf; look at the image's intensities and the transform")
