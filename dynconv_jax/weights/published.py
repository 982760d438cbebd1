"""The networks whose checkpoints are known: one row a family.

A row of `NETWORKS` says by which keys a family is known, and which calls of
`create_model` its checkpoints may be of, the most likely first: name and options are
read off keys and shapes alone. Nothing is built here. Whoever asks builds what a call
says without values, and holds it against the checkpoint: a row need not be sure.
"""

import math
import re
from collections.abc import Iterator

from dynconv_jax.models.dymn import WIDTHS as DYMN_WIDTHS
from dynconv_jax.models.dynamic_net import WIDTHS, scaled_widths
from dynconv_jax.models.efficientnet_cc import STAGES as EFFICIENT_STAGES
from dynconv_jax.models.fdy_cnn import WIDTHS as SOUND_WIDTHS
from dynconv_jax.models.kw_recognition import recognize_kw_network
from dynconv_jax.models.mobilenet_v2 import STAGES as MOBILE_STAGES
from dynconv_jax.models.mobilenet_v2 import make_divisible
from dynconv_jax.models.mobilenet_v3 import LARGE, SMALL
from dynconv_jax.weights.members import Place, Shapes, shape_of, without
from dynconv_jax.weights.trunks import Call, Network, Trunk, count, multiplier, read

# DynamicNet

_DYNAMIC_NET = Trunk(
    re.compile(r"stem\.0|stage[123]\.dyn"),
    lambda match: Place("stem" if match[0] == "stem.0" else "body"),
    stem="stem.0",
    head="fc.weight",
    stages=3,
    dynamic=None,
    conv="dynamic",
)


def _dynamic_nets(shapes: Shapes) -> Iterator[Call]:
    norms = ("stem.1", "stage1.bn", "stage2.bn", "stage3.bn")
    widths = [shape_of(shapes, f"{norm}.weight", 1)[0] for norm in norms]
    width_mult = multiplier(
        lambda number: scaled_widths(WIDTHS, number) == widths, widths[-1], WIDTHS[-1]
    )
    mult = without(dict(width_mult=1.0), width_mult=width_mult)
    yield read(shapes, _DYNAMIC_NET, "dynamic_net", **mult)


# ResNet

# Whether the blocks are basic ones, and how many there are in each stage.
_RESNETS = {
    (True, (2, 2, 2, 2)): "resnet18",
    (True, (3, 4, 6, 3)): "resnet34",
    (False, (3, 4, 6, 3)): "resnet50",
    (False, (3, 4, 23, 3)): "resnet101",
}


def _resnet_place(match: re.Match[str]) -> Place:
    if match["stage"] is None:
        return Place("stem", kernel_size=7)
    stage, part = int(match["stage"]), match["part"]
    if part == "downsample.0":
        return Place("downsample", stage, 1)
    # Of a basic block until the keys say otherwise, see `_bottleneck_place`.
    return Place("body", stage, 3, True)


def _bottleneck_place(match: re.Match[str]) -> Place:
    place = _resnet_place(match)
    if place.role != "body":
        return place
    return Place("body", place.stage, 3 if match["part"] == "conv2" else 1)


_RESNET = Trunk(
    re.compile(
        r"conv1(?=\.)|layer(?P<stage>[1-4])\.\d+\.(?P<part>conv[123]|downsample\.0)"
    ),
    _resnet_place,
    stem="conv1",
    head="fc.weight",
    stages=4,
    dynamic="paper",
)


def _resnets(shapes: Shapes, **own: str) -> Iterator[Call]:
    is_basic = "layer1.0.bn3.weight" not in shapes
    depths = tuple(
        count(shapes, f"layer{stage}.{{}}.bn1.weight") for stage in (1, 2, 3, 4)
    )
    known = [each for each in _RESNETS if each[0] == is_basic]
    nearest = min(known, key=lambda each: math.dist(each[1], depths))
    trunk = _RESNET if is_basic else _RESNET._replace(place=_bottleneck_place)
    yield read(shapes, trunk._replace(**own), _RESNETS[nearest])


# The networks of ODConv, whose arrays are those of networks with it


def _published_with_odconv(call: Call) -> Call:
    """Of what the authors have with ODConv, by the name of theirs."""
    options = dict(call.options)
    inside = {"num_experts": 4, **options.pop("conv_options", {})}
    has_odconv = options.pop("conv", "static") == "odconv" and len(inside) == 1
    is_read = {*call.doubts} <= {f"{call.head}.weight is missing"}
    if not (has_odconv and is_read) or "dynamic" in options:
        return call
    if inside["num_experts"] > 1:
        options["conv_options"] = inside
    name = f"od_{call.name}"
    return call._replace(name=name, title=name, options=options)


# MobileNetV2


def _stage_of_block(block: int) -> int:
    """Returns the stage, from 1, of a block of MobileNetV2, from 1; 0 behind them."""
    depths = [depth for _, _, depth, _ in MOBILE_STAGES]
    ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
    return next((n for n, end in enumerate(ends, 1) if block <= end), 0)


def _mobilenet_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    if index == 0:
        return Place("stem")
    if match["inner"] is None:
        return Place("head", kernel_size=1)
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["inner"] == (".conv.0.0" if index == 1 else ".conv.1.0")
    return Place("body", _stage_of_block(index), 3 if is_depthwise else 1)


_MOBILENET = Trunk(
    re.compile(
        r"(?!features\.1\.conv\.2\.)features\.(?P<index>\d{1,3})"
        r"(?:\.0(?=\.)|(?P<inner>\.conv\.(?:[01]\.0(?=\.)|[12](?=\.\D))))"
    ),
    _mobilenet_place,
    stem="features.0.0",
    head="classifier.1.weight",
    stages=len(MOBILE_STAGES),
    dynamic="paper",
)


def _mobilenets(
    shapes: Shapes,
    trunk: Trunk = _MOBILENET,
    last: tuple[str, str] = ("conv.2", "conv.3"),
) -> Iterator[Call]:
    """Of MobileNetV2, the last norm of whose first block, and of others, is `last`."""
    depths = [depth for _, _, depth, _ in MOBILE_STAGES]
    channels = [each for _, each, depth, _ in MOBILE_STAGES for _ in range(depth)]
    norms = ["features.0.1", f"features.1.{last[0]}"]
    norms += [f"features.{index}.{last[1]}" for index in range(2, sum(depths) + 1)]
    width_mult = _at_width(shapes, norms, [32, *channels])
    mult = without(dict(width_mult=1.0), width_mult=width_mult)
    yield read(shapes, trunk, "mobilenet_v2", **mult)


# The networks of Dynamic Convolution Decomposition

_FLAT = Trunk(
    re.compile(
        r"features\.(?P<index>0)\.0(?=\.)|conv\.0(?=\.)"
        r"|features\.(?P<block>[1-9]\d?)\.conv\.(?P<part>[036])(?=\.)"
    ),
    lambda match: _flat_place(match),
    stem="features.0.0",
    head="",
    stages=len(MOBILE_STAGES),
    dynamic=("pointwise", 6),
    conv="decomposed",
)


def _flat_place(match: re.Match[str]) -> Place:
    if match["block"] is None:
        is_stem = match["index"] is not None
        return Place("stem") if is_stem else Place("head", kernel_size=1)
    block = int(match["block"])
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["part"] == ("0" if block == 1 else "3")
    return Place("body", _stage_of_block(block), 3 if is_depthwise else 1)


def _decomposed(shapes: Shapes) -> Iterator[Call]:
    """Of the authors' layouts, whose classifier is 0 without a dropout before it."""
    without_dropout = "classifier.0.cls.weight" in shapes
    classifier = "classifier.0" if without_dropout else "classifier.1"
    own = dict(head=f"{classifier}.cls.weight", conv="decomposed")
    if "layer1.0.bn1.weight" in shapes:
        (call,) = _resnets(shapes, **own)
    else:
        (call,) = _mobilenets(shapes, _FLAT._replace(**own), ("conv.4", "conv.7"))
    options = dict(call.options)
    if options.get("conv") == "decomposed":  # with options, and as it is anyway
        del options["conv"]
        inside = options.pop("conv_options", {})
        usual = "mobilenet_v2" if call.name == "mobilenet_v2" else "resnet"
        inside = without(dict(variant=usual), **inside)
        options |= {"conv_options": inside} if inside else {}
    if without_dropout:
        options["dropout"] = 0.0
    name = f"dcd_{call.name}"
    yield call._replace(name=name, title=name, options=options, head="classifier")


# MobileNetV3, and DyMN, which has its blocks


def _mobilenet_v3_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    if index == 0:
        return Place("stem")
    if match["part"] is None:
        return Place("head", kernel_size=1)
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["part"] == ("0" if index == 1 else "1")
    return Place("body", index, 3 if is_depthwise else 1)


_MOBILENET_V3 = Trunk(
    re.compile(
        r"features\.(?P<index>\d{1,3})(?:\.0(?=\.)|\.block\.(?P<part>\d)\.0(?=\.))"
    ),
    _mobilenet_v3_place,
    stem="features.0.0",
    head="classifier.3.weight",
    stages=len(LARGE),
    dynamic="paper",
)


def _mobilenets_v3(shapes: Shapes) -> Iterator[Call]:
    is_large = f"features.{len(SMALL) + 2}.block.0.1.weight" in shapes
    blocks, name = (LARGE, "large") if is_large else (SMALL, "small")
    norms, width = ["features.0.1"], 16
    usual = [width]
    # By position: the two frameworks have names of their own for widths.
    for index, (_, expanded, after, *_, has_squeeze) in enumerate(blocks, start=1):
        last = (expanded != width) + 1 + has_squeeze
        norms.append(f"features.{index}.block.{last}.1")
        width = after
        usual.append(width)
    mult = _at_width(shapes, norms, usual)
    trunk = _MOBILENET_V3._replace(stages=len(blocks))
    call = read(
        shapes,
        trunk,
        f"mobilenet_v3_{name}",
        **without(dict(width_mult=1.0), width_mult=mult),
    )
    yield _with_whole_head(call, shapes, "classifier.0.weight")


def _with_whole_head(call: Call, shapes: Shapes, first: str) -> Call:
    """Of a head of several layers: where the first is not there, either, it is all."""
    return call if first in shapes else call._replace(head="classifier")


def _at_width(shapes: Shapes, norms: list[str], usual: list[int]) -> float:
    """Returns by what the widths of norms are multiples of the usual ones."""
    widths = [shape_of(shapes, f"{norm}.weight", 1)[0] for norm in norms]
    return multiplier(
        lambda number: [make_divisible(each * number) for each in usual] == widths,
        widths[-1],
        usual[-1],
    )


def _dymn_place(match: re.Match[str]) -> Place:
    if match["index"] is None:
        return Place("stem")
    side = 3 if match["part"] == "depth" else 1
    return Place("body", int(match["index"]) + 1, side)


_DYMN = Trunk(
    # Not the last one, which is static whatever is dynamic.
    re.compile(r"in_c\.0|layers\.(?P<index>\d{1,3})\.(?P<part>exp|depth|proj)_conv"),
    _dymn_place,
    stem="in_c.0",
    head="classifier.5.weight",
    stages=len(LARGE),
    dynamic="paper",
    conv="context",
)


def _dymns(shapes: Shapes) -> Iterator[Call]:
    norms = [f"layers.{index}.proj_norm" for index in range(len(LARGE))]
    usual = [16, *(width for _, _, width, *_ in LARGE)]
    mult = _at_width(shapes, ["in_c.1", *norms], usual)
    name = next((name for name, each in DYMN_WIDTHS.items() if each == mult), "dymn10")
    usual_mult = dict(width_mult=DYMN_WIDTHS[name])
    call = read(shapes, _DYMN, name, **without(usual_mult, width_mult=mult))
    # Images have three channels, and sounds one, which is the default. The convolution
    # is said, so that its options may be given.
    options = {"in_channels": 3, "conv": "context", **call.options}
    if options["in_channels"] == 1:
        del options["in_channels"]
    call = call._replace(options=options)
    yield _with_whole_head(call, shapes, "classifier.2.weight")


# EfficientNet

_EFFICIENT_PARTS = {"conv_pw": 1, "conv_pwl": 1}


def _efficientnet_place(match: re.Match[str]) -> Place:
    if match["stage"] is None:
        is_stem = match[0] == "conv_stem"
        return Place("stem") if is_stem else Place("head", kernel_size=1)
    stage = int(match["stage"])
    side = EFFICIENT_STAGES[stage].kernel_size
    return Place("body", stage + 1, _EFFICIENT_PARTS.get(match["part"], side))


_EFFICIENTNET = Trunk(
    re.compile(
        r"conv_stem|conv_head"
        r"|blocks\.(?P<stage>[0-6])\.\d+\.(?P<part>conv_pwl|conv_pw|conv_dw)"
    ),
    _efficientnet_place,
    stem="conv_stem",
    head="classifier.weight",
    stages=len(EFFICIENT_STAGES),
    dynamic=3,
    conv="condconv",
)
_SIZES = {"b0": "efficientnet_cc_b0_4e", "b1": "efficientnet_cc_b1_8e"}
# By the depth of the stages and the number of experts.
_EFFICIENTNETS = {
    ("b0", 4): "efficientnet_cc_b0_4e",
    ("b0", 8): "efficientnet_cc_b0_8e",
    ("b1", 8): "efficientnet_cc_b1_8e",
}
_OF_TENSORFLOW = (
    "no array tells padding and epsilon, and the weights that timm has published of "
    "EfficientNets with CondConv were all trained in TensorFlow"
)
_PERHAPS_TENSORFLOW = (
    "no array tells padding and epsilon; for weights that were trained in TensorFlow, "
    "such as the `tf_` ones of timm, give `tensorflow=True`"
)


def _efficientnets(shapes: Shapes) -> Iterator[Call]:
    depths = [
        count(shapes, f"blocks.{stage}.{{}}.bn1.weight")
        for stage in range(len(EFFICIENT_STAGES))
    ]
    of_size = {
        name: [math.ceil(each.depth * mult) for each in EFFICIENT_STAGES]
        for name, mult in (("b0", 1.0), ("b1", 1.1))
    }
    size = min(of_size, key=lambda each: math.dist(of_size[each], depths))
    widths = without(
        dict(stem_channels=32, head_channels=1280),
        stem_channels=shape_of(shapes, "bn1.weight", 1)[0],
        head_channels=shape_of(shapes, "bn2.weight", 1)[0],
    )
    call = read(shapes, _EFFICIENTNET, _SIZES[size], **widths)
    options = dict(call.options)
    is_condconv = options.get("conv", "condconv") == "condconv"
    if is_condconv:
        experts = options.get("conv_options", {}).get("num_experts", 4)
        if name := _EFFICIENTNETS.get((size, experts)):  # which says so
            options.pop("conv", None)
            options.pop("conv_options", None)
            call = call._replace(name=name, title=name)
        else:
            options["conv"] = "condconv"
    options["tensorflow"] = is_condconv
    guesses = {"tensorflow": _OF_TENSORFLOW if is_condconv else _PERHAPS_TENSORFLOW}
    yield call._replace(options=options, guesses=guesses)


# KernelWarehouse's own networks

_KW_HEADS = {"kw_convnext_tiny": "head", "kw_mobilenet_v2": "classifier"}


def _kw_networks(shapes: Shapes) -> Iterator[Call]:
    if found := recognize_kw_network(shapes):
        name, options = found
        yield Call(name, options, name, _KW_HEADS.get(name, "fc"))


# FDYCNN


def _sound_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    return Place("body", index) if index else Place("stem")


_FDY_CNN = Trunk(
    re.compile(r"cnn\.conv(?P<index>[0-6])(?=\.)"),
    _sound_place,
    stem="cnn.conv0",
    head="fc.weight",
    stages=len(SOUND_WIDTHS) - 1,
    dynamic="paper",
    conv="frequency_dynamic",
)


def _fdy_cnns(shapes: Shapes) -> Iterator[Call]:
    norms = (f"cnn.batchnorm{index}.weight" for index in range(len(SOUND_WIDTHS)))
    widths = [shape_of(shapes, norm, 1)[0] for norm in norms]
    width_mult = multiplier(
        lambda number: scaled_widths(SOUND_WIDTHS, number) == widths,
        widths[-1],
        SOUND_WIDTHS[-1],
    )
    options = without(
        dict(width_mult=1.0, activation="cg"),
        width_mult=width_mult,
        activation="glu" if "cnn.glu0.linear.weight" in shapes else "cg",
    )
    call = read(shapes, _FDY_CNN, "fdy_cnn", **options)
    # Spectrograms have one channel, where images have three.
    found = dict(in_channels=3) | call.options
    yield call._replace(options=without(dict(in_channels=1), **found))


NETWORKS = (
    Network("KernelWarehouse's networks", (), _kw_networks),
    Network("DCD without dropout", ("classifier.0.cls.weight",), _decomposed),
    Network("DCD", ("classifier.1.cls.weight",), _decomposed),
    Network("DynamicNet", ("stem.1.weight", "stage1.bn.weight"), _dynamic_nets),
    Network(
        "ResNet",
        ("bn1.weight", "layer1.0.bn1.weight"),
        lambda shapes: map(_published_with_odconv, _resnets(shapes)),
    ),
    Network(
        "MobileNetV2",
        ("features.0.1.weight", "features.1.conv.2.weight"),
        lambda shapes: map(_published_with_odconv, _mobilenets(shapes)),
    ),
    Network("FDYCNN", ("cnn.batchnorm0.weight", "cnn.batchnorm6.weight"), _fdy_cnns),
    Network(
        "MobileNetV3",
        ("features.0.1.weight", "features.1.block.0.1.weight"),
        _mobilenets_v3,
    ),
    Network("DyMN", ("in_c.1.weight", "layers.0.depth_norm.weight"), _dymns),
    Network("EfficientNet", ("bn1.weight", "blocks.0.0.bn1.weight"), _efficientnets),
)
