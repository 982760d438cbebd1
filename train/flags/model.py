"""The flags of the model: which one, of which convolutions, and where it starts."""

import dataclasses
from typing import Annotated, Literal

import tyro

from train.flags.checks import (
    Flags,
    OptionalInt,
    OptionalPath,
    OptionalStr,
    Switch,
)

Options = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]


@dataclasses.dataclass(frozen=True)
class ModelFlags(Flags):
    """The flags of the model.

    Attributes:
        model: The network; --list-models lists them.
        conv: What its convolutions are; --list-models lists the choices. Without it,
            what the model has by default (for dynamic_net: dynamic).
        num_experts: How many expert kernels each dynamic convolution mixes. This and
            the four flags below are refused by a convolution that has no such option,
            and without them it has its own defaults.
        reduction: By how much the hidden layer of a router is narrower than its input.
        top_k: How many experts a router keeps for an image; without it, all.
        router_dropout: The share of a router's hidden units that is dropped in
            training.
        router_noise: The standard deviation of the noise on a router's logits in
            training, which has it try experts that it would not choose.
        drop_path: The share of samples that skip a residual block in training
            (stochastic depth): 0 for the first block, this for the last of a ResNet,
            and in between for those between. It is refused by a network without such
            blocks.
        conv_options: Other options of the convolution; `--conv-options help` lists
            them.
        model_options: Options of the model, such as dynamic=pointwise;
            `--model-options help` lists them.
        dtype: What the network computes in. Parameters, statistics and the optimizer's
            state are float32 always.
        grad_checkpointing: Compute what is in a block anew for its gradient, in place
            of keeping it: less memory for more time. What is computed stays the same.
        init_from: A file of weights to start from, in PyTorch's layout, or the
            directory of a run. It is safetensors, or of `torch.save` where PyTorch is
            installed; of the same model, or of the same model with static convolutions,
            whose function the dynamic one then starts with. Of a run it is the weights
            after its last step.
        new_head: Draw the head, the last layer, anew. It must be where --init-from is
            of other classes; everything else must fit.
        init_noise: The standard deviation of what is added to each expert that starts
            as a static kernel, as a share of that of the kernel.
        twin: Train the static twin too, the same model with static convolutions. It
            has the same data, recipe and seed, and is trained before the model itself,
            as a run of its own in --out/twin. The report has both.
    """

    model: str = "dynamic_net"
    conv: OptionalStr = None
    num_experts: OptionalInt = None
    reduction: OptionalInt = None
    top_k: OptionalInt = None
    router_dropout: float = 0.0
    router_noise: float = 0.0
    drop_path: float = 0.0
    conv_options: Options = ()
    model_options: Options = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    grad_checkpointing: Switch = False
    init_from: OptionalPath = None
    new_head: Switch = False
    init_noise: float = 0.0
    twin: Switch = False

    def check_model(self) -> None:
        """Refuses what no run could use; what only the model knows, it refuses itself.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.require_at_least_one("num_experts", "reduction", "top_k")
        if self.top_k is not None and self.num_experts is not None:
            rule = f"be from 1 to --num-experts (={self.num_experts})"
            self.require("top_k", self.top_k <= self.num_experts, rule)
        self.require_share("router_dropout", "drop_path")
        for name in ("conv_options", "model_options"):
            for each in getattr(self, name):
                is_pair = "=" in each and each.partition("=")[0].isidentifier()
                self.require(name, is_pair, "be of the form NAME=VALUE")
        self.require_weight("router_noise", "init_noise")
        rule = "be left out without --init-from: all is drawn anew then"
        self.require("new_head", not self.new_head or self.init_from is not None, rule)
        if self.init_noise:
            rule = "be 0 without --init-from, whose kernels it is added to"
            self.require("init_noise", self.init_from is not None, rule)
