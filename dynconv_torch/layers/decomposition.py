"""What decomposed layers share: how Λ and Φ come from features, and what Φ mixes."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.numerics import call_wide, dtypes_of, without_autocast
from dynconv_torch.functional.tracing import has_open_size


class Decomposition(NamedTuple):
    """What a decomposed layer makes of an input.

    Attributes:
        scale: Λ, shape (B, O), the weights of the static outputs, from 0 to 2.
        phi: Φ, shape (B, L, L), what mixes the latent features.
    """

    scale: Tensor
    phi: Tensor


def hard_gate(logits: Tensor) -> Tensor:
    """From 0 to 2, and 1 at 0: twice the hard sigmoid.

    Example:
        >>> import torch
        >>> hard_gate(torch.tensor([-3.0, 0.0, 9.0])).tolist()
        [0.0, 1.0, 2.0]
    """
    return F.relu6(logits + 3) / 3


class SqueezeGate(nn.Module):
    """Features times the gates that a linear layer computes from them.

    Attributes:
        fc: The linear layer, in a sequence as checkpoints have it.
    """

    def __init__(self, features: int, **options):
        """Builds the layer; the options are those of `torch.nn.Linear`."""
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(features, features, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Returns gated features (B, s)."""
        return x * hard_gate(self.fc(x))


class Decomposed(nn.Module):
    """A layer with a static part that Λ scales, and a latent one that Φ mixes.

    Attributes:
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the features to the squeezed ones; `fc_phi` and `fc_scale` take them to
            Φ and to the logits of Λ.
    """

    latent: int

    def build_decomposition(
        self,
        features: int,
        hidden: int,
        latent: int,
        out_features: int,
        norm: type[nn.Module],
        **options: Any,
    ) -> None:
        """Builds what computes Λ and Φ, and the norms.

        Args:
            features: How many features Λ and Φ come from.
            hidden: s, the number of squeezed features.
            latent: L.
            out_features: O.
            norm: The class of `bn1`.
            **options: `device` and `dtype`.
        """
        self.latent = latent
        linear: dict[str, Any] = dict(bias=False, **options)
        self.bn1 = norm(latent, **options)
        self.bn2 = nn.BatchNorm1d(latent, **options)
        self.fc = nn.Sequential(
            nn.Linear(features, hidden, **linear), SqueezeGate(hidden, **linear)
        )
        self.fc_phi = nn.Linear(hidden, latent * latent, **linear)
        self.fc_scale = nn.Linear(hidden, out_features, **linear)

    def decompose(self, features: Tensor) -> Decomposition:
        """Returns Λ and Φ of features (B, F), in their dtype."""
        with without_autocast(features.device):
            hidden = call_wide(self.fc, features)
            phi = call_wide(self.fc_phi, hidden)
            return Decomposition(
                scale=hard_gate(call_wide(self.fc_scale, hidden)),
                phi=phi.unflatten(1, (self.latent, self.latent)),
            )

    def gate_dtypes(self) -> set:
        """Returns the dtypes of the parameters that compute Λ and Φ."""
        return dtypes_of(self.fc, self.fc_phi, self.fc_scale)

    def mix(self, latent: Tensor, phi: Tensor) -> Tensor:
        """Returns bn2(Φ q) + q for q (B, L, pixels), normed by bn1 already."""
        # In the dtype of Φ: in float16 it would overflow before the norm shrinks it.
        with without_autocast(latent.device):
            mixed = call_wide(self.bn2, phi @ latent.to(phi.dtype))
        return mixed.to(latent.dtype) + latent

    def check_values(self, x: Tensor, latent: Tensor) -> None:
        """Refuses to train on one value per channel."""
        # Layers of other kinds, as the norm over several processes, see more values.
        is_own = type(self.bn1) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not (is_own and self.bn1.training) or has_open_size(latent):
            return
        if latent.numel() == latent.shape[1]:
            raise ValueError(
                f"`x` (shape {tuple(x.shape)}) gives the batch norms of the layer one "
                "value per channel, whose variance is not defined in training; train "
                "with a larger batch or larger inputs, or put the layer in evaluation "
                "mode"
            )
