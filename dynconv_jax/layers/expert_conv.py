"""What layers with K expert kernels share: the experts and their convolution."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.functional.choice import check_implementation
from dynconv_jax.functional.dynamic import dynamic_conv
from dynconv_jax.functional.geometry import Geometry, PaddingLike, expert_count
from dynconv_jax.functional.numerics import keep_wide
from dynconv_jax.layers.convolution import Convolution

default_kernel_init = nnx.initializers.normal(0.02)
default_bias_init = nnx.initializers.zeros_init()


class ExpertOptions(TypedDict, total=False):
    """The options of `ExpertConv`, for members of the family that pass them on.

    A member names what is its own and passes on the rest, so that what all have is said
    once; editors and type checkers know the names from here. `DynamicConv` alone, which
    stands in for `nnx.Conv`, spells them out and explains them.
    """

    padding: PaddingLike
    kernel_dilation: int | Sequence[int] | None
    feature_group_count: int
    use_bias: bool
    num_experts: int
    implementation: str
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    kernel_init: Initializer
    bias_init: Initializer
    promote_dtype: PromoteDtypeFn
    preferred_element_type: DTypeLike | None
    kernel_metadata: Mapping[str, Any]
    bias_metadata: Mapping[str, Any]


def _stack(experts: list[Any]) -> Any:
    """Stacks what an initialiser drew for each expert, with its metadata, if any."""
    first = experts[0]
    if not isinstance(first, nnx.VariableMetadata):  # as of nnx.with_partitioning
        return jnp.stack(experts)
    metadata = dict(first.metadata)
    names, shape = metadata.get("out_sharding"), first.raw_value.shape
    if names is not None and len(names) > len(shape) + 1:
        raise ValueError(
            f"`nnx.with_partitioning` names {len(names)} axes (={tuple(names)}); name "
            f"the {len(shape)} of an expert (shape {shape}), or {len(shape) + 1} with "
            "that of the experts before them"
        )
    if names is not None and len(names) <= len(shape):  # the experts' axis is whole
        metadata["out_sharding"] = (None, *names)
    stacked = jnp.stack([expert.raw_value for expert in experts])
    return dataclasses.replace(first, raw_value=stacked, metadata=metadata)


class ExpertConv(Convolution):
    """K expert kernels, and the convolution of each sample with its mixture of them.

    The base of the layers that differ in where the attention comes from.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.

    Example:
        >>> layer = ExpertConv(3, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
        >>> layer.kernel.shape
        (4, 3, 3, 3, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = False,
        num_experts: int = 4,
        implementation: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        rngs: nnx.Rngs,
    ):
        """Draws the experts; `DynamicConv` explains the arguments.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        geometry = self._create_geometry(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
        )
        check_implementation(implementation, geometry)
        check_dtypes(
            dtype=dtype,
            param_dtype=param_dtype,
            preferred_element_type=preferred_element_type,
            optional=("dtype", "preferred_element_type"),
        )
        check_rngs(rngs)
        self._take_geometry(geometry)
        self.use_bias = use_bias
        self.num_experts = expert_count(num_experts)
        self.implementation = implementation
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type

        def init_experts(init: Initializer, shape: tuple[int, ...]) -> jax.Array:
            keys = jax.random.split(rngs.params(), num_experts)
            return _stack([init(key, shape, param_dtype) for key in keys])

        self.kernel = nnx.Param(
            init_experts(kernel_init, geometry.kernel_shape), **kernel_metadata
        )
        self.bias: nnx.Param[jax.Array] | None
        if use_bias:
            self.bias = nnx.Param(
                init_experts(bias_init, (out_features,)), **bias_metadata
            )
        else:
            self.bias = nnx.data(None)

    # What a transposed layer has otherwise.
    def _create_geometry(self, *sizes: Any, **options: Any) -> Geometry:
        """Creates the layer's geometry, from the arguments of `Geometry.create`."""
        return Geometry.create(*sizes, **options)

    def _apply_experts(self, *operands: Any, **options: Any) -> jax.Array:
        """Computes the layer, from the arguments of `dynamic_conv`."""
        return dynamic_conv(*operands, **options)

    def _convolve(
        self,
        inputs: jax.Array,
        attention: jax.Array | None,
        **options: Any,
    ) -> jax.Array:
        """Convolves inputs (B, *S, C) with experts mixed by attention (B, K).

        Further options are those of `_apply_experts`.
        """
        experts = self.kernel[...], None if self.bias is None else self.bias[...]
        inputs, kernel, bias = self.promote_dtype((inputs, *experts), dtype=self.dtype)
        if self.promote_dtype is dtypes.promote_dtype:  # which only casts
            kernel, bias = jax.tree.map(keep_wide, experts, (kernel, bias))
        return self._apply_experts(
            inputs,
            attention,
            kernel,
            bias,
            **self._geometry_options,
            implementation=self.implementation,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **options,
        )
