"""The dynamic classifier: a linear head, decomposed as `DecomposedConv` is."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_arrays, check_dtypes
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import at_least_float32, scale_channels
from dynconv_jax.initializers import torch_bias_init, torch_kernel_init
from dynconv_jax.layers.decomposition import Decomposed, Decomposition


class DynamicClassifier(Decomposed):
    """A linear layer, scaled per sample, plus a dynamic low-rank one.

        y = Λ(x) ⊙ (W x + b) + P (bn2(Φ(x) q) + q)        q = bn1(Q x)

    The head of the networks of Li et al., "Revisiting Dynamic Convolution via Matrix
    Decomposition", ICLR 2021, in their code. Takes the place of `nnx.Linear`, with its
    argument names. Λ and Φ come from the input itself, as in `DecomposedConv` from what
    is pooled.

    Attributes:
        cls: The linear layer; `cls_q` and `cls_p` are Q and P, without bias.
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the input to the squeezed features; `fc_phi` and `fc_scale` take them
            to Φ and to the logits of Λ.

    Example:
        >>> head = DynamicClassifier(64, 10, rngs=nnx.Rngs(0))
        >>> features = jnp.ones((2, 64))
        >>> head(features).shape
        (2, 10)
        >>> head.decomposition(features).phi.shape
        (2, 32, 32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        latent_features: int = 32,
        hidden_features: int = 32,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = torch_kernel_init,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input features.
            out_features: O, the number of output features.
            latent_features: L; published networks have 32.
            hidden_features: The number of squeezed features; published networks have
                32.
            dtype: The dtype of the computation; None infers it from the input and the
                parameters. Λ and Φ are computed in float32 at least.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            kernel_init: Initialises the kernels of all linear layers.
            bias_init: Initialises the bias; None as `torch.nn.Linear`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        positive_int("latent_features", latent_features)
        positive_int("hidden_features", hidden_features)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.dtype = dtype
        linear: dict[str, Any] = dict(
            dtype=dtype,
            precision=precision,
            kernel_init=kernel_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.cls = nnx.Linear(
            in_features,
            out_features,
            bias_init=bias_init or torch_bias_init(in_features),
            **linear,
        )
        self.cls_q = nnx.Linear(in_features, latent_features, use_bias=False, **linear)
        self.cls_p = nnx.Linear(latent_features, out_features, use_bias=False, **linear)
        self._build_decomposition(
            in_features, hidden_features, latent_features, out_features, **linear
        )

    def decomposition(self, inputs: jax.Array) -> Decomposition:
        """Returns Λ and Φ.

        Args:
            inputs: Shape (B, C).

        Returns:
            Shapes (B, O) and (B, L, L).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        return self._decompose(self._features(inputs))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (B, C).

        Returns:
            Shape (B, O).

        Raises:
            ValueError: If the inputs do not fit the layer, or are one sample in
                training.
        """
        scale, phi = self.decomposition(inputs)
        latent = self.cls_q(inputs)
        self._check_values(inputs, latent)
        dynamic = self.cls_p(self._mix(self.bn1(latent), phi))
        return scale_channels(self.cls(inputs), scale) + dynamic

    def _features(self, inputs: jax.Array) -> jax.Array:
        """Returns what Λ and Φ come from: the inputs, in float32 at least."""
        check_arrays(inputs=inputs)
        inputs = jnp.asarray(inputs)
        if inputs.ndim != 2 or inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) must be (batch, in_features) with "
                f"`in_features` (={self.in_features})"
            )
        return inputs.astype(at_least_float32(self.dtype or inputs.dtype))
