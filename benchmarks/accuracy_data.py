"""CIFAR-10 for ``bench_accuracy.py``: kept on the device as bytes, and augmented there by whole epochs."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tamis.errors import InputError, MissingLibrary

SIZE = 32
MARGIN = 4  # pixels that a crop may be off the middle
MEAN = (125.3, 123.0, 113.9)  # of the training set, of 255
DEVIATION = (63.0, 62.1, 66.7)
CLASSES = 10
_CHUNK = 8192  # images augmented at a time: bounds the memory of their floats


@dataclass(frozen=True)
class Images:
    """Images and labels on a device.

    Attributes:
        pixels: uint8, (images, 32, 32, 3).
        labels: int64, (images,).
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised float32 images in channels-last (N, 3, 32, 32), and their labels, in order."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield normalised(pixels), labels

    def first(self, count: int) -> Images:
        return Images(self.pixels[:count], self.labels[:count])


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, besides crops and flips.

    Attributes:
        cutout: side of the grey square, in pixels.
        jitter: largest change of brightness and of contrast, as a fraction.
    """

    cutout: int = 0
    jitter: float = 0.0


def load(
    folder: Path, device: torch.device, train: int | None = None, test: int | None = None
) -> tuple[Images, Images]:
    """Training and test images; the first ``train`` and ``test`` of them, or all.

    Raises `InputError` where a file is missing or not as `read` says, `MissingLibrary` without a JPEG decoder.
    """
    return read(folder / "train.npz", device, train), read(folder / "test.npz", device, test)


def read(path: Path, device: torch.device, count: int | None = None) -> Images:
    """A file of numpy arrays: ``jpeg`` (all files one after another), ``offsets`` (where each begins, and the end) and
    ``labels``; or ``images`` as uint8 (N, 32, 32, 3) and ``labels``.
    """
    remedy = "give --data a folder with train.npz and test.npz of CIFAR-10: arrays jpeg, offsets and labels"
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", remedy=remedy)
    try:
        with np.load(path) as arrays:
            labels = arrays["labels"][:count].astype(np.int64)
            if "images" in arrays:
                pixels = arrays["images"][:count]
            else:
                pixels = _decoded(arrays["jpeg"], arrays["offsets"], len(labels))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"'{path}' cannot be read: {error}", remedy=remedy) from error
    if pixels.shape != (len(labels), SIZE, SIZE, 3) or pixels.dtype != np.uint8 or not len(labels):
        raise InputError(f"'{path}' holds {pixels.dtype} images of shape {list(pixels.shape)}", remedy=remedy)
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(f"'{path}' has labels from {labels.min()} to {labels.max()}, not 0 to 9", remedy=remedy)
    return Images(torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device))


def _decoded(jpeg: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    decode = _decoder()
    files = (jpeg[start:stop].tobytes() for start, stop in itertools.pairwise(offsets[: count + 1]))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoders work without Python's lock
        return np.stack(list(pool.map(decode, files, chunksize=256)))


def _decoder() -> Any:
    """From the bytes of a JPEG file to uint8 (height, width, 3)."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ImportError:
        try:
            from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415
        except ImportError as error:
            raise MissingLibrary("no JPEG decoder", remedy="pip install pillow") from error
        return lambda file: (
            decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
            .permute(1, 2, 0)
            .numpy()
        )
    return lambda file: np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes (N, 32, 32, 3) as float32 (N, 3, 32, 32), in channels-last memory as they are."""
    mean, deviation = (torch.tensor(values, device=pixels.device) for values in (MEAN, DEVIATION))
    return scaled(pixels, mean, deviation)


def scaled(pixels: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """As `normalised`, with the constants on the device already."""
    images = ((pixels.float() - mean) / deviation).permute(0, 3, 1, 2)
    # A GPU likes channels innermost. On CPUs without AVX-512 PyTorch 2.13 corrupts memory there, in the backward pass
    # of convolutions of few channels.
    return images if images.is_cuda else images.contiguous()


def padded(pixels: torch.Tensor) -> torch.Tensor:
    """Images with a mirrored margin, from which crops are taken."""
    places = torch.arange(-MARGIN, SIZE + MARGIN, device=pixels.device).abs()
    places = torch.where(places >= SIZE, 2 * (SIZE - 1) - places, places)
    return pixels[:, places][:, :, places]


def epoch_of(
    images: Images, wide: torch.Tensor, augmentation: Augmentation, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """All images once, in random order, each cropped, flipped and disturbed at random; pixels (bytes) and labels.

    ``wide`` are the pixels as `padded` gives them.
    """
    order = torch.randperm(len(images), generator=generator, device=wide.device)
    pixels = torch.cat([_augmented(wide[some], augmentation, generator) for some in order.split(_CHUNK)])
    return pixels, images.labels[order]


def _augmented(wide: torch.Tensor, augmentation: Augmentation, generator: torch.Generator) -> torch.Tensor:
    count, device = len(wide), wide.device

    def drawn(high: int) -> torch.Tensor:
        return torch.randint(high, (count, 1), generator=generator, device=device)

    line = torch.arange(SIZE, device=device)
    rows = drawn(2 * MARGIN + 1) + line
    columns = drawn(2 * MARGIN + 1) + torch.where(drawn(2) == 1, line, SIZE - 1 - line)
    images = wide[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    grey = torch.tensor(MEAN, device=device)
    if augmentation.jitter:
        brightness, contrast = (
            1 + augmentation.jitter * (2 * torch.rand(count, 1, 1, 1, generator=generator, device=device) - 1)
            for _ in range(2)
        )
        values = images.float() * brightness
        means = values.mean((1, 2, 3), keepdim=True)
        images = ((values - means) * contrast + means).clamp_(0, 255).to(torch.uint8)
    if augmentation.cutout:
        # The square's middle lies anywhere, so that part of it may lie outside.
        half = augmentation.cutout // 2
        down, across = (line - drawn(SIZE) + half for _ in range(2))
        inside = [(place >= 0) & (place < augmentation.cutout) for place in (down, across)]
        square = inside[0][:, :, None, None] & inside[1][:, None, :, None]
        images = torch.where(square, grey.to(torch.uint8), images)
    return images
