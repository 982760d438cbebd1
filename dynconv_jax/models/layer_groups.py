"""The parts of a network by depth, of which the last is its head.

Each network says its own, in `_layer_groups`.
"""

from typing import Any

LayerGroups = list[tuple[str, ...]]


def layer_groups(model: Any) -> LayerGroups:
    """Returns the parts of a network from the images to the logits.

    They are those of timm: the stem, each block, the head; a convolution between the
    last block and the head goes with that block. `DynamicNet` has five, a ResNet two
    more than it has blocks. What belongs to no depth, the warehouses of
    `with_warehouses`, is in none.

    Args:
        model: A network of `list_models()`, or a module of one's own with a method
            `_layer_groups`, which answers the same.

    Returns:
        For each depth the names of its modules, as PyTorch's keys begin; some may be of
        modules that this network has not, such as the router of a static stem.

    Raises:
        TypeError: If the module does not say.

    Example:
        >>> from flax import nnx
        >>> from dynconv_jax import DynamicNet
        >>> net = nnx.eval_shape(lambda: DynamicNet(rngs=nnx.Rngs(0)))
        >>> layer_groups(net)
        [('stem',), ('stage1',), ('stage2',), ('stage3',), ('fc',)]
    """
    if not hasattr(model, "_layer_groups"):
        raise TypeError(
            f"`model` (a {type(model).__name__}) does not say what its layers are; "
            "give it a method `_layer_groups`, as those of `dynconv_jax.models` have"
        )
    return model._layer_groups()


def head_of(model: Any) -> tuple[str, ...]:
    """Returns the names of a network's head, which has a size for the classes.

    They are what `init_from_static` and `load_weights` are to ignore where the weights
    are of other classes.

    Args:
        model: As of `layer_groups`.

    Raises:
        TypeError: If the module does not say.

    Example:
        >>> from flax import nnx
        >>> from dynconv_jax import create_model
        >>> head_of(nnx.eval_shape(lambda: create_model("resnet18", rngs=nnx.Rngs(0))))
        ('fc',)
    """
    return layer_groups(model)[-1]
