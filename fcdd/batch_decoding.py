"""JPEGs -> uint8 pixels of the network's size, many at once, by torchvision's decoder on a GPU (nvJPEG).

The same picture as `fcdd.images.decode`, within what decoders differ by: nvJPEG interpolates colours in another way
(0.8 of 255 in the mean), and it decodes at full scale. Only for files that `fcdd.jpeg_files.examine` has found whole:
this decoder returns what is damaged as a picture. On a CPU torchvision's libjpeg takes nvJPEG's place.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdd.card import Card
from fcdd.cropping import box_of
from fcdd.errors import ImageError
from fcdd.images import HASH_CELLS, DecodedImage, View
from fcdd.jpeg_files import JpegFile

# Decoded at once, in pixels: their colours as float32 take twelve times the bytes.
_PIXELS_AT_ONCE = 64_000_000
# Rec. 601, in the integers that Pillow weighs colours with.
_LUMA, _LUMA_HALF, _LUMA_SHIFT = (19595, 38470, 7471), 1 << 15, 16
# How pixels (C,H,W) are turned upright, by EXIF orientation.
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.transpose(1, 2).flip(2),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.transpose(1, 2).flip(1),
}


class BatchDecoder:
    """JPEGs as a network sees them, decoded on `device`; for several threads at once."""

    def __init__(self, view: View, device: torch.device) -> None:
        """Raises ImportError where torchvision is built without its decoders."""
        from torchvision.io import ImageReadMode, decode_jpeg  # a second of import that others do not need

        if not _is_built():
            raise ImportError("torchvision is built without its decoders of images")
        self._view, self._card, self._decode = view, Card(device), decode_jpeg
        self._mode = ImageReadMode.GRAY if view.channels == 1 else ImageReadMode.RGB
        # Since torchvision 0.29, in favour of TorchCodec's, which the oldest torch that we support has no release for.
        warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)

    def __call__(self, jpegs: Sequence[JpegFile]) -> list[DecodedImage | None]:
        """The images, in order; None for what the decoder refuses. Raises RuntimeError if that is all of several."""
        images, errors = list[DecodedImage | None](), list[RuntimeError]()
        for some in _pieces(jpegs):
            with self._card.lane():
                images += self._piece(some, errors)
        if errors and len(images) > 1 and not any(images):
            raise errors[0]
        return images

    def _piece(self, jpegs: Sequence[JpegFile], errors: list[RuntimeError]) -> list[DecodedImage | None]:
        encoded = [torch.frombuffer(bytearray(jpeg.data), dtype=torch.uint8) for jpeg in jpegs]
        by_size: dict[torch.Size, list[tuple[int, Tensor]]] = {}
        for index, (jpeg, pixels) in enumerate(zip(jpegs, self._full(encoded, errors), strict=True)):
            if pixels is not None and (part := self._seen(pixels, jpeg)) is not None:
                by_size.setdefault(part.shape, []).append((index, part))
        indices, resizes = list[int](), list[Tensor]()
        for group in by_size.values():
            try:
                resizes.append(resized(torch.stack([part for _, part in group]), self._view.size))
            except RuntimeError as error:  # there are kernels that cannot scale by as much
                errors.append(error)
            else:
                indices += [index for index, _ in group]
        images: list[DecodedImage | None] = [None] * len(jpegs)
        if not indices:
            return images
        for index, image, numbers, bits in zip(indices, *self._fetched(torch.cat(resizes)), strict=True):
            width, height = jpegs[index].upright_size
            brightness, contrast, sharpness = numbers.tolist()
            images[index] = DecodedImage(
                pixels=image,
                width=width,
                height=height,
                frames=1,
                format="JPEG",
                is_faint=False,
                peak=0.0,
                brightness=brightness,
                contrast=contrast,
                sharpness=sharpness,
                hash=bits.tobytes(),
            )
        return images

    def _full(self, encoded: list[Tensor], errors: list[RuntimeError]) -> list[Tensor | None]:
        """Pixels (C,H,W) of each. One error is that of all, so a list with a bad file is divided until it is alone."""
        try:
            decoded = self._decode(encoded, self._mode, self._card.device)
            # The decoder of some GPUs writes on after it has returned (torchvision's pull request 9606).
            self._card.drain()
        except RuntimeError as error:
            if len(encoded) == 1:
                errors.append(error)
                return [None]
            half = len(encoded) // 2
            return [*self._full(encoded[:half], errors), *self._full(encoded[half:], errors)]
        return list(decoded)

    def _seen(self, pixels: Tensor, file: JpegFile) -> Tensor | None:
        """What of an image the network sees, upright; None where a decoder that says why should look at it."""
        if tuple(pixels.shape[1:]) != (file.height, file.width):
            return None
        upright = _TURNS[file.orientation](pixels) if file.orientation in _TURNS else pixels
        try:
            box = box_of(self._view.crop, (upright.shape[1], upright.shape[2]))
        except ImageError:
            return None
        return upright[:, box.top : box.bottom, box.left : box.right]

    def _fetched(self, pixels: Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Pixels (N,H,W,C), statistics (N,3) and hashes (N,32), in ordinary memory."""
        channels_last = pixels.permute(0, 2, 3, 1).contiguous()
        numbers, bits = statistics(pixels), hashes(pixels)
        return self._card.fetch([channels_last]), self._card.fetch([numbers]), np.packbits(self._card.fetch([bits]), 1)


def _is_built() -> bool:
    """Whether the decoders are part of this build; without them torchvision is imported all the same."""
    return hasattr(torch.ops.image, "decode_jpeg")


def _pieces(jpegs: Sequence[JpegFile]) -> Iterator[Sequence[JpegFile]]:
    """Neighbours that fit into memory together."""
    first = pixels = 0
    for index, jpeg in enumerate(jpegs):
        area = jpeg.width * jpeg.height
        if index > first and pixels + area > _PIXELS_AT_ONCE:
            yield jpegs[first:index]
            first, pixels = index, 0
        pixels += area
    if jpegs:
        yield jpegs[first:]


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,C,H,W) uint8 at another size (height, width), by the antialiased bilinear filter that Pillow has."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()


def statistics(pixels: Tensor) -> Tensor:
    """Brightness, contrast and sharpness (N,3) float32 of pixels (N,C,H,W) uint8, as of a `DecodedImage`."""
    values, grey = pixels.flatten(1).float(), _grey(pixels).float()
    steps = [(grey[:, :, 1:] - grey[:, :, :-1]), (grey[:, 1:] - grey[:, :-1])]
    means = [step.abs().mean((1, 2)) for step in steps if step[0].numel()]
    sharpness = torch.stack(means).mean(0) if means else values.new_zeros(len(values))
    return torch.stack([values.mean(1), values.std(1, correction=0), sharpness], 1)


def hashes(pixels: Tensor) -> Tensor:
    """Bits (N,256) uint8 of the difference hashes of pixels (N,C,H,W) uint8, as `fcdd.images.difference_hash`."""
    rows, columns = HASH_CELLS
    grey = _grey(pixels).float()
    # As Pillow does, it rounds twice, and halves upwards.
    across = (grey @ _box_filter(grey.shape[2], columns).to(grey.device).T + 0.5).floor()
    cells = (_box_filter(grey.shape[1], rows).to(grey.device) @ across + 0.5).floor()
    return (cells[:, :, 1:] > cells[:, :, :-1]).flatten(1).byte()


def _grey(pixels: Tensor) -> Tensor:
    """(N,H,W) grey levels."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, pixels.int().unbind(1), strict=True))
    return (red + green + blue + _LUMA_HALF) >> _LUMA_SHIFT


@functools.cache
def _box_filter(size: int, cells: int) -> Tensor:
    """(cells, size): the weights of Pillow's BOX filter, which counts pixels whose centre lies in a cell."""
    scale = size / cells
    support = max(1.0, scale) / 2
    weights = torch.zeros(cells, size)
    for cell in range(cells):
        centre = (cell + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))
        for pixel in range(first, last):
            offset = (pixel - centre + 0.5) / max(1.0, scale)
            weights[cell, pixel] = float(-0.5 < offset <= 0.5)
    return weights / weights.sum(1, keepdim=True)
