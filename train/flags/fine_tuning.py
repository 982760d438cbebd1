"""The flags of fine-tuning: what stays as it is, what moves at a rate of its own."""

import dataclasses
from typing import Annotated

import tyro

from train.flags.checks import Flags, OptionalFloat

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


@dataclasses.dataclass(frozen=True)
class FineTuningFlags(Flags):
    """The flags of fine-tuning.

    Attributes:
        freeze: What is not trained: experts, routers, head, backbone (all but routers
            and head), or names of weights. These are as the files of weights have
            them, such as layer1 or stage2.dyn.weight; an asterisk stands for anything.
            Batch norms in it normalise as in evaluation.
        layer_decay: What the learning rate is multiplied with from each layer to the
            one before it, from the head, which has it whole, to the stem. Layers are
            the blocks of the network.
        head_learning_rate: The peak learning rate of the head, in place of
            --learning-rate; it falls as that does.
        router_learning_rate: The same of the routers; --layer-decay multiplies it too.
    """

    freeze: Names = ()
    layer_decay: float = 1.0
    head_learning_rate: OptionalFloat = None
    router_learning_rate: OptionalFloat = None

    def check_fine_tuning(self) -> None:
        """Refuses what no run could use; what only the model knows comes later.

        Raises:
            TrainError: If a value is out of range.
        """
        self.require_positive("head_learning_rate", "router_learning_rate")
        rule = "be above 0 and at most 1"
        self.require("layer_decay", 0 < self.layer_decay <= 1, rule)
