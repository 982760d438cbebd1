"""The dynamic classifier: a linear head, decomposed as `DecomposedConv2d` is."""

from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype, check_tensors
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import (
    at_least_float32,
    check_same_dtype,
    dtypes_of,
    scale_channels,
)
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.layers.decomposition import Decomposed, Decomposition


class DynamicClassifier(Decomposed):
    """A linear layer, scaled per sample, plus a dynamic low-rank one.

        y = Λ(x) ⊙ (W x + b) + P (bn2(Φ(x) q) + q)        q = bn1(Q x)

    The head of the networks of Li et al., "Revisiting Dynamic Convolution via Matrix
    Decomposition", ICLR 2021, in their code. Takes the place of `torch.nn.Linear`, with
    its argument names. Λ and Φ come from the input itself, as in `DecomposedConv2d`
    from what is pooled.

    Attributes:
        cls: The linear layer; `cls_q` and `cls_p` are Q and P, without bias.
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the input to the squeezed features; `fc_phi` and `fc_scale` take them
            to Φ and to the logits of Λ.

    Example:
        >>> head = DynamicClassifier(64, 10)
        >>> features = torch.randn(2, 64)
        >>> head(features).shape
        torch.Size([2, 10])
        >>> head.decomposition(features).phi.shape
        torch.Size([2, 32, 32])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        latent_features: int = 32,
        hidden_features: int = 32,
    ):
        """Builds the layer; its parameters are drawn as `torch.nn.Linear` draws them.

        Args:
            in_features: C, the number of input features.
            out_features: O, the number of output features.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Λ and Φ are computed in float32 at
                least.
            latent_features: L; published networks have 32.
            hidden_features: The number of squeezed features; published networks have
                32.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        positive_int("latent_features", latent_features)
        positive_int("hidden_features", hidden_features)
        check_dtype(dtype)
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.cls = nn.Linear(in_features, out_features, **options)
        self.cls_q = nn.Linear(in_features, latent_features, bias=False, **options)
        self.cls_p = nn.Linear(latent_features, out_features, bias=False, **options)
        self.build_decomposition(
            in_features,
            hidden_features,
            latent_features,
            out_features,
            nn.BatchNorm1d,
            **options,
        )

    def decomposition(self, x: Tensor) -> Decomposition:
        """Returns Λ and Φ.

        Args:
            x: Shape (B, C).

        Returns:
            Shapes (B, O) and (B, L, L).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        check_tensors(x=x)
        shape = sizes_of(x)
        if x.ndim != 2 or shape[1] != self.in_features:
            raise ValueError(
                f"`x` (shape {shape}) must be (batch, in_features) with `in_features` "
                f"(={self.in_features})"
            )
        return self.decompose(x.to(at_least_float32(x.dtype, *self.gate_dtypes())))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C).

        Returns:
            Shape (B, O).

        Raises:
            ValueError: If the input does not fit the layer, or is one sample in
                training.
        """
        scale, phi = self.decomposition(x)
        check_same_dtype("x", x, "weight", *dtypes_of(self.cls))
        latent = self.cls_q(x)
        self.check_values(x, latent)
        mixed = self.mix(self.bn1(latent)[..., None], phi)
        return scale_channels(self.cls(x), scale) + self.cls_p(mixed[..., 0])
