"""`"patches"`: whole windows gathered, one product.

The windows of a sample are laid side by side, taps · C numbers a pixel, and contracted
with the sample's kernel: over a batch, one batched matrix product. No number of groups
depends on the batch, so it is the form for programs that leave the batch open.
"""

from jaxtyping import Num
from torch import Tensor

from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.windows import gather_windows, pad_for


def conv_by_patches(
    input: Num[Tensor, "batch in_channels *spatial"],
    weight: Num[Tensor, "batch out_channels in_per_group *window"],
    geometry: Geometry,
) -> Num[Tensor, "batch out_channels *out_spatial"]:
    """Convolves samples with kernels of their own, as one product.

    Example:
        >>> import torch
        >>> geometry = Geometry.create(4, 6, 3, rank=2, padding=1, groups=2)
        >>> images, kernels = torch.ones(2, 4, 9, 7), torch.ones(2, 6, 2, 3, 3)
        >>> conv_by_patches(images, kernels, geometry).shape
        torch.Size([2, 6, 9, 7])
    """
    groups = geometry.groups
    split = pad_for(input, geometry).unflatten(1, (groups, -1))  # (B, g, C/g, *S)
    windows = gather_windows(split, geometry)
    # (B, O, C/g, *k) -> (B, g, O/g, taps · C/g)
    rows = weight.unflatten(1, (groups, -1)).flatten(4).transpose(3, 4).flatten(3)
    output = (rows @ windows.flatten(3)).flatten(1, 2)
    return output.unflatten(2, windows.shape[3:])
