"""The checkpoints of KernelWarehouse's networks: keys and shapes, from the paper alone.

Written from what is published of the networks (which layers share, which are static,
how cells are cut), without a line of the two packages.
"""

import dataclasses
import math
from collections.abc import Callable

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass
class Checkpoint:
    """Gathers layers, and then the cells and attentions of those that share.

    Attributes:
        reduction: What divides the channels in an attention.
        norm: `"batch"` or `"layer"`, of the attention.
        basis: The size of a basis over the number of other layers' cells.
    """

    reduction: int = 16
    norm: str = "batch"
    basis: float = 1.0

    def __post_init__(self):
        """Starts without layers."""
        self.shapes: Shapes = {}
        self.shared: dict[str, list[tuple[str, tuple[int, ...], int, bool]]] = {}

    def batch_norm(self, key: str, channels: int) -> None:
        """Adds a batch norm."""
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.shapes[f"{key}.{part}"] = (channels,)
        self.shapes[f"{key}.num_batches_tracked"] = ()

    def linear(self, key: str, inputs: int, outputs: int, bias: bool = True) -> None:
        """Adds a linear layer."""
        self.shapes[f"{key}.weight"] = (outputs, inputs)
        if bias:
            self.shapes[f"{key}.bias"] = (outputs,)

    def layer_norm(self, key: str, channels: int) -> None:
        """Adds a layer norm."""
        self.shapes[f"{key}.weight"] = self.shapes[f"{key}.bias"] = (channels,)

    def conv(
        self,
        key: str,
        inputs: int,
        outputs: int,
        size: tuple[int, ...],
        warehouse: str | None,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        """Adds a convolution: static, or one that shares a warehouse of this name."""
        shape = (outputs, inputs // groups, *size)
        if warehouse is None:
            self.shapes[f"{key}.weight"] = shape
        else:
            row = key, shape, inputs, bias
            self.shared.setdefault(warehouse, []).append(row)

    def finish(
        self,
        ratio: dict[str, float] | float,
        in_ratio: dict[str, float] | float = 1.0,
        out_ratio: dict[str, float] | float = 1.0,
    ) -> Shapes:
        """Returns all keys and shapes."""

        def of(given: dict[str, float] | float, name: str) -> float:
            return given.get(name, 1.0) if isinstance(given, dict) else given

        for index, (name, rows) in enumerate(self.shared.items()):
            outputs, widths, *_ = zip(*(shape for _, shape, *_ in rows), strict=True)
            co = int(math.gcd(*outputs) * of(out_ratio, name))
            ci = int(math.gcd(*widths) * of(in_ratio, name))
            tiles = [math.prod(shape) // (co * ci) for _, shape, *_ in rows]
            cells = int(sum(tiles) * of(ratio, name))
            ones = [1] * (len(rows[0][1]) - 2)
            self.shapes[f"warehouse_manager.weights.{index}"] = (cells, co, ci, *ones)
            for (key, shape, inputs, bias), count in zip(rows, tiles, strict=True):
                own = int(count * of(ratio, name))
                self._attention(f"{key}.attention", inputs, count, cells, own)
                if bias:
                    self.shapes[f"{key}.bias"] = shape[:1]
        return self.shapes

    def _attention(
        self, key: str, inputs: int, tiles: int, cells: int, own: int
    ) -> None:
        hidden = max(inputs // self.reduction, 16)
        if self.norm == "batch":
            self.linear(f"{key}.fc1", inputs, hidden, bias=False)
            self.batch_norm(f"{key}.norm1", hidden)
        else:
            self.linear(f"{key}.fc1", inputs, hidden)
            self.layer_norm(f"{key}.norm1", hidden)
        if self.basis == 1:
            self.linear(f"{key}.fc2", hidden, tiles * (cells + 1))
            return
        basis = max(int((cells - own) * self.basis), 16)
        self.linear(f"{key}.fc2", hidden, tiles * (own + basis + 1), bias=False)
        self.linear(f"{key}.fc3", basis, cells - own, bias=False)
        self.shapes[f"{key}.basis_bias"] = (tiles * (cells + 1),)


def resnet(
    depths: tuple[int, ...],
    ratio: dict[str, float] | float,
    *,
    is_bottleneck: bool,
    classes: int = 1000,
    reduction: int = 16,
    basis: float | None = None,
    in_ratio: float | None = None,
    out_ratio: float | None = None,
    shared: Callable[[str], str] = lambda name: name,
) -> Shapes:
    """Returns the checkpoint of a ResNet; what is None is as published.

    `shared` answers what shares a warehouse, from the name of the stage.
    """
    is_small = not isinstance(ratio, dict) and ratio < 1
    if basis is None:
        basis = 1 / 16 if is_bottleneck and is_small else 1.0
    made = Checkpoint(basis=basis, reduction=reduction)
    made.conv("conv1", 3, 64, (7, 7), None)
    made.batch_norm("bn1", 64)
    width = 64
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        outputs = planes * (4 if is_bottleneck else 1)
        for index in range(depth):
            block = f"layer{stage + 1}.{index}"
            own = shared(f"stage {stage}")
            entry = own if index else shared(f"stage {stage - 1}")
            if stage == index == 0:
                entry = None if is_bottleneck else own
            if is_bottleneck:
                sides = [(width, planes, 1), (planes, planes, 3), (planes, outputs, 1)]
            else:
                sides = [(width, planes, 3), (planes, planes, 3)]
            for number, (inputs, channels, side) in enumerate(sides, start=1):
                warehouse = entry if number == 1 else own
                key = f"{block}.conv{number}"
                made.conv(key, inputs, channels, (side, side), warehouse)
                made.batch_norm(f"{block}.bn{number}", channels)
            if index == 0 and width != outputs:
                key = f"{block}.downsample"
                made.conv(f"{key}.0", width, outputs, (1, 1), entry)
                made.batch_norm(f"{key}.1", outputs)
            width = outputs
    made.linear("fc", width, classes)
    half = 0.5 if is_small else 1.0
    return made.finish(
        ratio,
        half if in_ratio is None else in_ratio,
        half if out_ratio is None else out_ratio,
    )


def mobilenet_v2(
    ratio: float, width_mult: float, classes: int = 1000, like: float | None = None
) -> Shapes:
    """Returns the checkpoint of a MobileNetV2 of a width of 1 or a half.

    Its layers share as those of the ratio `like` do, if it is given.
    """
    made = Checkpoint(reduction=32 if ratio < 1 and like is None else 16)
    like = ratio if like is None else like
    halves = {"stage 6 expand": 0.5, "stage 6 project": 0.5}

    def name(stage: int, kind: str) -> str | None:
        if kind in ("stem", "depthwise"):
            return f"stage {stage} {kind}"
        if like == 1:
            return f"stage {stage} pointwise"
        return None if like < 1 and stage < 6 else f"stage {stage} {kind}"

    def rounded(channels: int) -> int:
        return max(8, int(channels * width_mult + 4) // 8 * 8)

    width = rounded(32)
    made.conv("features.0.0", 3, width, (3, 3), name(0, "stem"))
    made.batch_norm("features.0.1", width)
    outputs = [16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320]
    # The first block of a stage belongs to the one before.
    stages = [1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    for number, (out, stage) in enumerate(zip(outputs, stages, strict=True), start=1):
        block, out = f"features.{number}.conv", rounded(out)
        wide = width if number == 1 else 6 * width
        at = 0
        if number > 1:
            made.conv(f"{block}.0.0", width, wide, (1, 1), name(stage, "expand"))
            made.batch_norm(f"{block}.0.1", wide)
            at = 1
        key = f"{block}.{at}"
        made.conv(f"{key}.0", wide, wide, (3, 3), name(stage, "depthwise"), groups=wide)
        made.batch_norm(f"{key}.1", wide)
        made.conv(f"{block}.{at + 1}", wide, out, (1, 1), name(stage, "project"))
        made.batch_norm(f"{block}.{at + 2}", out)
        width = out
    made.conv("features.18.0", width, 1280, (1, 1), name(6, "project"))
    made.batch_norm("features.18.1", 1280)
    if like >= 1:
        made.linear("classifier", 1280, classes)
        return made.finish(ratio)
    made.conv("classifier.1.conv", 1280, classes, (1,), "classifier", bias=True)
    of_head = {"classifier": 0.025}
    return made.finish({**halves, "classifier": 0.5}, {**halves, **of_head}, halves)


def convnext_tiny(classes: int = 1000) -> Shapes:
    """Returns the checkpoint of ConvNeXt-T."""
    made = Checkpoint(norm="layer")
    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    made.conv("downsample_layers.0.0", 3, 96, (4, 4), "stem", bias=True)
    made.layer_norm("downsample_layers.0.1", 96)
    for number in (1, 2, 3):
        key, name = f"downsample_layers.{number}", f"between {number}"
        width, following = widths[number - 1], widths[number]
        made.layer_norm(f"{key}.0", width)
        made.conv(f"{key}.1", width, following, (2, 2), name, bias=True)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            key = f"stages.{stage}.{index}"
            made.shapes[f"{key}.gamma"] = (1, width, 1, 1)
            made.layer_norm(f"{key}.norm", width)
            depthwise, pointwise = f"stage {stage} depthwise", f"stage {stage}"
            made.conv(f"{key}.dwconv", width, width, (7, 7), depthwise, width, True)
            for number, ends in ((1, (width, 4 * width)), (2, (4 * width, width))):
                made.conv(f"{key}.pwconv{number}", *ends, (1, 1), pointwise, bias=True)
    made.layer_norm("norm", 768)
    made.linear("head", 768, classes)
    return made.finish(1.0)
