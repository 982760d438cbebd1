"""Heads of networks that are more than a linear layer."""

from flax import nnx

from dynconv_jax.layers.dynamic_classifier import DynamicClassifier

HEADS = "linear", "dynamic"


def dynamic_head(
    in_features: int, num_classes: int, dropout: float, *, rngs: nnx.Rngs, **options
) -> nnx.Sequential:
    """Returns a dropout, where there is any, and a `DynamicClassifier`.

    So the classifier is `0` of the sequence without dropout and `1` with it, as in the
    checkpoints of its authors.

    Args:
        in_features: The number of features.
        num_classes: The number of logits.
        dropout: The rate of the dropout.
        rngs: Where the initial parameters come from, and the keys of the dropout.
        **options: Of the classifier.

    Example:
        >>> len(dynamic_head(64, 10, 0.1, rngs=nnx.Rngs(0)).layers)
        2
    """
    drop = [nnx.Dropout(dropout, rngs=rngs)] if dropout else []
    classifier = DynamicClassifier(in_features, num_classes, rngs=rngs, **options)
    return nnx.Sequential(*drop, classifier)
