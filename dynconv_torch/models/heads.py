"""Heads of networks that are more than a linear layer."""

from torch import nn

from dynconv_torch.layers.dynamic_classifier import DynamicClassifier

HEADS = "linear", "dynamic"


def dynamic_head(
    in_features: int, num_classes: int, dropout: float, **options
) -> nn.Sequential:
    """Returns a dropout, where there is any, and a `DynamicClassifier`.

    So the classifier is `0` of the sequence without dropout and `1` with it, as in the
    checkpoints of its authors.

    Args:
        in_features: The number of features.
        num_classes: The number of logits.
        dropout: The rate of the dropout.
        **options: Of the classifier.

    Example:
        >>> len(dynamic_head(64, 10, 0.1))
        2
    """
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*drop, DynamicClassifier(in_features, num_classes, **options))
