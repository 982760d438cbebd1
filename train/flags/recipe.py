"""The flags of the recipe: the optimizer, its schedules, and what the loss is."""

import dataclasses
import itertools
from typing import Annotated, Literal, Self

import tyro

from train.flags.checks import (
    Flags,
    OptionalFloat,
    OptionalInt,
    PresetFloat,
    flag_of,
)

# What only some optimizers and schedules have a use for. Those that are derived where
# they are left out are not here.
USES = {
    "optimizer": {
        "sgd": ("momentum", "nesterov"),
        "adamw": ("beta1", "beta2"),
        "lamb": ("beta1", "beta2"),
    },
    "schedule": {
        "cosine": ("final_learning_rate",),
        "linear": ("final_learning_rate",),
        "step": ("decay_factor",),
        "constant": (),
    },
}

# Flags that have defaults of the preset: what they usually are, and where else.
USUAL = {
    "label_smoothing": 0.0,
    "load_balance": 0.0,
    "temperature_start": 4.0,
    "temperature_end": 0.1,
}
OF_PRESETS = {
    # Digits are learned within some 40 steps; from then on the loss has next to nothing
    # to tell a router. So routers choose while there is something to choose by, smooth
    # labels go on asking for more, and balance keeps them from settling on one expert.
    "digits": {
        "label_smoothing": 0.1,
        "load_balance": 0.03,
        "temperature_start": 0.5,
        "temperature_end": 0.03,
    },
}


# Of a run that is told neither steps nor epochs.
STEPS = 400


@dataclasses.dataclass(frozen=True)
class RecipeFlags(Flags):
    """The flags of the recipe.

    Attributes:
        steps: How many optimizer steps to take; without it, those of --epochs, or 400.
        epochs: How often to go through the training images, in the place of --steps. An
            epoch has as many steps as --batch-size goes into their number; the rest,
            which is another one in each epoch, is left out.
        early_stopping: After how many evaluations without a better accuracy the run
            ends before its last step; without it, it does not.
        restarts: After which steps the learning rate of a cosine or a line starts anew.
            It then warms up again, over a tenth of what comes at the most. A run that
            is finished gets one where it ended, if --steps or --epochs is raised. What
            follows from the length of a run where it is left out, follows from that of
            its first part.
        batch_size: How many images a step sees, over all devices and processes
            together; it must be divisible by the number of devices.
        accumulate: Into how many parts a batch is cut, whose gradients are averaged
            before the step, to save memory. The step is that of the whole batch, but
            batch norms and the load-balancing loss see a part at a time.
        optimizer: adamw, sgd (with momentum) or lamb.
        learning_rate: The peak learning rate.
        momentum: That of sgd.
        nesterov: Nesterov's form of sgd's momentum.
        beta1: How slowly the mean of the gradients moves, of adamw and lamb.
        beta2: How slowly the mean of their squares moves.
        schedule: How the learning rate falls after the warm-up: along a cosine or a
            line to --final-learning-rate, in steps, or not at all (constant).
        warmup_steps: Over how many steps the learning rate rises to its peak; without
            it, a tenth of --steps.
        final_learning_rate: Where the cosine and the line end.
        decay_every: After how many steps each the schedule "step" decays, counted from
            the start of the run; without it, a third of --steps.
        decay_factor: What it multiplies the learning rate with.
        weight_decay: The weight decay of the kernels: decoupled in adamw and lamb,
            added to the gradient in sgd. Norms and biases have none.
        router_weight_decay: The same for the kernels of the routers, which have this
            one in its place.
        clip_norm: The largest global norm of the gradients; larger ones are scaled down
            to it. Without it, none are.
        loss: What is made small: the cross-entropy of the softmax, or binary ones. That
            of bce is the mean over images and classes of the binary cross-entropies, as
            in ResNet strikes back. Evaluation tells the cross-entropy of either.
        label_smoothing: The share of the target that is spread over all classes. This,
            --load-balance, --temperature-start and --temperature-end have defaults of
            the preset: for digits 0.1, 0.03, 0.5 and 0.03, else 0, 0, 4 and 0.1.
        ema_decay: The share that a moving average of the parameters and batch
            statistics keeps of itself at each step. After n steps it is n / (n + 9) at
            the most; the average is evaluated and saved too. Without it, there is none.
        load_balance: The weight of the load-balancing loss. It is the mean over all
            routers, and asks that a batch use all experts alike; Switch Transformers
            have 0.01.
        router_z_loss: The weight of the loss on the size of the routers' logits. It is
            the mean over all routers, and keeps their softmax from settling for good;
            ST-MoE has 0.001.
        temperature_start: The temperature of the routers' softmax at the first step. A
            high one has all experts learn before the routers choose among them; Chen et
            al. and ODConv fall from 30 to 1.
        temperature_end: The temperature that it falls to.
        temperature_steps: When it arrives there; without it, after half of --steps.
        temperature_schedule: How it falls: along a line, or exponentially.
        assignment_steps: Over how many steps the assignment of a kernel_warehouse
            fades; without it, a fifth of --steps. With it, cells are fixed at the
            start, and give way to the attention.
    """

    steps: OptionalInt = None
    epochs: OptionalInt = None
    early_stopping: OptionalInt = None
    restarts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="STEP ...")] = ()
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup_steps: OptionalInt = None
    final_learning_rate: float = 0.0
    decay_every: OptionalInt = None
    decay_factor: float = 0.1
    weight_decay: float = 0.05
    router_weight_decay: float = 0.0
    clip_norm: OptionalFloat = None
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: PresetFloat = None
    ema_decay: OptionalFloat = None
    load_balance: PresetFloat = None
    router_z_loss: float = 0.0
    temperature_start: PresetFloat = None
    temperature_end: PresetFloat = None
    temperature_steps: OptionalInt = None
    temperature_schedule: Literal["linear", "exponential"] = "linear"
    assignment_steps: OptionalInt = None

    def check_recipe(self) -> None:
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.require_at_least_one(
            *("steps", "epochs", "early_stopping", "accumulate", "decay_every"),
            *("temperature_steps", "assignment_steps"),
        )
        rule = "be at least 2: batch norm needs more than one image"
        self.require("batch_size", self.batch_size >= 2, rule)
        rule = f"divide --batch-size (={self.batch_size}) into parts of 2 or more"
        divides = self.batch_size % self.accumulate == 0
        is_enough = self.batch_size // self.accumulate >= 2
        self.require("accumulate", divides and is_enough, rule)
        self.require_positive(
            *("learning_rate", "temperature_start", "temperature_end"),
            *("clip_norm", "decay_factor"),
        )
        self.require_weight(
            *("weight_decay", "router_weight_decay", "load_balance"),
            *("router_z_loss", "final_learning_rate"),
        )
        self.require_share(
            *("momentum", "beta1", "beta2", "label_smoothing", "ema_decay")
        )
        rule = "be left out with --momentum 0, of which it is a form"
        self.require("nesterov", not self.nesterov or self.momentum > 0, rule)
        self._check_uses()
        rule = f"be at most --learning-rate (={self.learning_rate})"
        is_below = self.final_learning_rate <= self.learning_rate
        self.require("final_learning_rate", is_below, rule)
        rule = "be at least 0"
        is_met = self.warmup_steps is None or self.warmup_steps >= 0
        self.require("warmup_steps", is_met, rule)
        if self.has_length:
            ends = 0, *self.restarts, self.total_steps
            rule = f"rise from 1 and be less than --steps (={self.total_steps})"
            is_rising = all(one < other for one, other in itertools.pairwise(ends))
            self.require("restarts", is_rising or not self.restarts, rule)
            rule = f"be less than --steps (={self.first_steps})"
            if self.restarts:
                rule = f"be less than the first of --restarts (={self.first_steps})"
            self.require("warmup_steps", self.warmup < self.first_steps, rule)

    def _check_uses(self) -> None:
        """Refuses what would change nothing, which nobody asks for knowingly."""
        for choice, uses in USES.items():
            chosen = getattr(self, choice)
            for name in {name for names in uses.values() for name in names}:
                is_usual = getattr(self, name) == getattr(RecipeFlags, name)
                rule = (
                    f"be left out with {flag_of(choice)} {chosen}, which has no use "
                    "for it"
                )
                self.require(name, is_usual or name in uses[chosen], rule)

    def for_images(self, count: int) -> Self:
        """Returns the flags with the steps that their epochs come to.

        Args:
            count: The number of training images, no less than `batch_size`.

        Raises:
            TrainError: If another value does not fit so many steps.

        Example:
            >>> RecipeFlags(epochs=3, batch_size=64).for_images(1437).total_steps
            66
        """
        if self.epochs is None:
            return self
        steps = self.epochs * steps_per_epoch(count, self.batch_size)
        return dataclasses.replace(self, steps=steps)

    @property
    def has_length(self) -> bool:
        """Whether the steps of the run are known; epochs become steps by the images."""
        return self.steps is not None or self.epochs is None

    @property
    def total_steps(self) -> int:
        """The steps of the run, given or derived."""
        assert self.has_length, "epochs become steps by `for_images`"
        return STEPS if self.steps is None else self.steps

    @property
    def first_steps(self) -> int:
        """The steps up to the first restart, if there is one."""
        return self.restarts[0] if self.restarts else self.total_steps

    @property
    def warmup(self) -> int:
        """The steps of warm-up, given or derived."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return self.first_steps // 10

    @property
    def decaying(self) -> int:
        """The steps between decays of the schedule "step", given or derived."""
        return self.decay_every or max(1, self.first_steps // 3)

    @property
    def annealing(self) -> int:
        """The steps of annealing the temperature, given or derived."""
        return self.temperature_steps or max(1, self.first_steps // 2)

    @property
    def assigning(self) -> int:
        """The steps of fading the warehouse's assignment out, given or derived."""
        return self.assignment_steps or max(1, self.first_steps // 5)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Returns how many whole batches the training images have.

    Example:
        >>> steps_per_epoch(1437, 64)
        22
    """
    return images // batch_size
