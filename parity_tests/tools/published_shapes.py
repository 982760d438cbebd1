"""What the authors' checkpoints hold: keys and shapes, written from their definitions.

Independent of the networks here; only the arithmetic of the papers is in it.
"""

import math
from collections.abc import Callable

Shapes = dict[str, tuple[int, ...]]
# Key, input and output channels, side, groups, whether in a basic block.
Layer = Callable[[str, int, int, int, int, bool], Shapes]

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


def norm(key: str, channels: int) -> Shapes:
    """A batch norm."""
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{key}.{part}": (channels,) for part in parts}
    return shapes | {f"{key}.num_batches_tracked": ()}


def gates(key: str, features: int, hidden: int, latent: int, outputs: int) -> Shapes:
    """What computes Λ and Φ, and the norms of the latent."""
    return {
        **norm(f"{key}.bn1", latent),
        **norm(f"{key}.bn2", latent),
        f"{key}.fc.0.weight": (hidden, features),
        f"{key}.fc.1.fc.0.weight": (hidden, hidden),
        f"{key}.fc_phi.weight": (latent**2, hidden),
        f"{key}.fc_scale.weight": (outputs, hidden),
    }


def static(key: str, c: int, o: int, side: int, groups: int, basic: bool) -> Shapes:
    """A convolution without bias."""
    return {f"{key}.weight": (o, c // groups, side, side)}


def decomposed(key: str, c: int, o: int, side: int, groups: int, basic: bool) -> Shapes:
    """The decomposed convolution of a ResNet."""
    features = 4 * c if basic else c
    latent = math.isqrt(features)
    hidden = features // 16
    if basic:
        hidden = max(hidden, 4)
    return {
        f"{key}.conv.weight": (o, c, side, side),
        f"{key}.q.weight": (latent, c, 1, 1),
        f"{key}.p.weight": (o, latent, 1, 1),
        **gates(key, features, hidden, latent, o),
    }


def mobile_decomposed(key: str, c: int, o: int, squeeze: int = 16) -> Shapes:
    """The decomposed 1×1 convolution of MobileNetV2."""
    features, ratio = (4 * c, 8) if c < o else (c, 2)
    latent = min(features // ratio, o // ratio)
    while latent * latent > 2 * features:
        ratio *= 2
        latent = min(features // ratio, o // ratio)
    latent = max(latent, 4)
    hidden = max(max(features, latent**2) // squeeze, 4)
    return {
        f"{key}.conv.weight": (o, c, 1, 1),
        f"{key}.conv_q.weight": (latent, c, 1, 1),
        f"{key}.conv_p.weight": (o, latent, 1, 1),
        **gates(key, features, hidden, latent, o),
    }


def od_conv(experts: int) -> Layer:
    """The omni-dimensional convolution of so many experts."""

    def layer(key: str, c: int, o: int, side: int, groups: int, basic: bool) -> Shapes:
        trunk = max(c // 16, 16)
        shapes: Shapes = {
            f"{key}.weight": (experts, o, c // groups, side, side),
            f"{key}.attention.fc.weight": (trunk, c, 1, 1),
            **norm(f"{key}.attention.bn", trunk),
        }
        sizes = {"channel": c, "filter": o, "spatial": side**2, "kernel": experts}
        if groups == c == o:
            del sizes["filter"]
        for name, size in sizes.items():
            if size > 1:
                shapes[f"{key}.attention.{name}_fc.weight"] = (size, trunk, 1, 1)
                shapes[f"{key}.attention.{name}_fc.bias"] = (size,)
        return shapes

    return layer


def classifier(key: str, features: int, classes: int) -> Shapes:
    """The dynamic classifier, with 32 latent and 32 squeezed features."""
    return {
        f"{key}.cls.weight": (classes, features),
        f"{key}.cls.bias": (classes,),
        f"{key}.cls_q.weight": (32, features),
        f"{key}.cls_p.weight": (classes, 32),
        **gates(key, features, 32, 32, classes),
    }


def linear(key: str, features: int, classes: int) -> Shapes:
    """A linear head."""
    return {f"{key}.weight": (classes, features), f"{key}.bias": (classes,)}


def resnet(name: str, layer: Layer, head: Shapes) -> Shapes:
    """A ResNet whose blocks are of such layers; stem and shortcuts are static."""
    deep = name in ("resnet50", "resnet101")
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    width = 64
    for stage, depth in enumerate(DEPTHS[name], start=1):
        inner = 32 * 2**stage
        outer = 4 * inner if deep else inner
        for index in range(depth):
            block = f"layer{stage}.{index}"
            plan = [(width, inner, 1), (inner, inner, 3), (inner, outer, 1)]
            if not deep:
                plan = [(width, inner, 3), (inner, inner, 3)]
            for number, (c, o, side) in enumerate(plan, start=1):
                shapes |= layer(f"{block}.conv{number}", c, o, side, 1, not deep)
                shapes |= norm(f"{block}.bn{number}", o)
            if index == 0 and (stage > 1 or deep):
                shapes[f"{block}.downsample.0.weight"] = (outer, width, 1, 1)
                shapes |= norm(f"{block}.downsample.1", outer)
            width = outer
    return shapes | head


# Of MobileNetV2's blocks the expansion and the output channels.
BLOCKS = [
    (1, 16),
    *[(6, 24)] * 2,
    *[(6, 32)] * 3,
    *[(6, 64)] * 4,
    *[(6, 96)] * 3,
    *[(6, 160)] * 3,
    (6, 320),
]


def dcd_mobilenet_v2(head: Shapes) -> Shapes:
    """Li et al.'s MobileNetV2: flat blocks, the first of them static."""
    shapes: Shapes = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}
    width = 32
    for index, (expansion, channels) in enumerate(BLOCKS, start=1):
        key, hidden = f"features.{index}.conv", width * expansion
        first = 0
        if expansion > 1:
            shapes |= mobile_decomposed(f"{key}.0", width, hidden)
            shapes |= norm(f"{key}.1", hidden)
            first = 3  # after an activation
        shapes[f"{key}.{first}.weight"] = (hidden, 1, 3, 3)
        shapes |= norm(f"{key}.{first + 1}", hidden)
        if expansion > 1:
            shapes |= mobile_decomposed(f"{key}.{first + 3}", hidden, channels)
        else:
            shapes[f"{key}.{first + 3}.weight"] = (channels, hidden, 1, 1)
        shapes |= norm(f"{key}.{first + 4}", channels)
        width = channels
    shapes["conv.0.weight"] = (1280, width, 1, 1)
    return shapes | norm("conv.1", 1280) | head


def od_mobilenet_v2(layer: Layer, head: Shapes) -> Shapes:
    """Li et al.'s MobileNetV2 of ODConv: all but the stem is dynamic."""
    shapes: Shapes = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}
    width = 32
    for index, (expansion, channels) in enumerate(BLOCKS, start=1):
        key, hidden, place = f"features.{index}.conv", width * expansion, 0
        if expansion > 1:
            shapes |= layer(f"{key}.0.0", width, hidden, 1, 1, False)
            shapes |= norm(f"{key}.0.1", hidden)
            place = 1
        shapes |= layer(f"{key}.{place}.0", hidden, hidden, 3, hidden, False)
        shapes |= norm(f"{key}.{place}.1", hidden)
        shapes |= layer(f"{key}.{place + 1}", hidden, channels, 1, 1, False)
        shapes |= norm(f"{key}.{place + 2}", channels)
        width = channels
    shapes |= layer("features.18.0", width, 1280, 1, 1, False)
    return shapes | norm("features.18.1", 1280) | head


def published(name: str, classes: int = 1000, experts: int = 1) -> Shapes:
    """The state dict of a published network, by the name that it has here."""
    family, _, architecture = name.partition("_")
    if architecture == "mobilenet_v2":
        if family == "dcd":
            return dcd_mobilenet_v2(classifier("classifier.1", 1280, classes))
        head = linear("classifier.1", 1280, classes)
        return od_mobilenet_v2(od_conv(experts), head)
    width = 2048 if architecture in ("resnet50", "resnet101") else 512
    if family == "dcd":
        head = classifier("classifier.1", width, classes)
        return resnet(architecture, decomposed, head)
    return resnet(architecture, od_conv(experts), linear("fc", width, classes))


def count(shapes: Shapes) -> int:
    """The number of parameters, without the statistics of norms."""
    return sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
