"""What the flags of other training programs are called here.

The names are those of timm's and torchvision's reference programs, and what else is
often typed: one table, so that who comes from there is told at once.
"""

import difflib
import re
from collections.abc import Collection

_STEPS = "an epoch has as many as --batch-size goes into the number of images"
_BF16 = "--dtype bfloat16 computes in half the width, and needs no scaling of the loss"
_RESUME = "none is needed: the same command with the same --out goes on"
_DEVICE = "JAX takes the fastest device there is; JAX_PLATFORMS=cpu chooses another"
_POLICY = "of policies there is RandAugment; 9 is the magnitude of rand-m9"
_CLASSES = "the classes are those of the images: of --data, one folder each"
_DROP = "networks have no dropout here; --router-dropout is that of the routers"
_COMPILE = "every step is compiled"
_BN = "batch norms see the batch of all devices and processes"
_WANDB = "metrics.jsonl and tensorboard/ in --out have all that is measured"
_PRETRAINED = "--init-from starts from a file of weights; nothing is downloaded"
_HEAD = "and --new-head draws a head for other classes"
_PROBE = "backbone and routers are what is frozen then"
_EMA = "it is on where it is given, such as 0.999"
_LAST = "the schedule ends with the last of --steps"
_SPLITS = "folder reads train/ and val/ of --data"
_SHARE = "it is a share of the training images"
_EVERY = "it counts steps"
_PARTS = "it counts the parts of a batch, which has --batch-size images altogether"
_EVALUATE = "the command `evaluate RUN` does it"
_ADAM = "it has its usual value"
_DISTRIBUTED = "see --coordinator, --num-processes and --process-id"

# Theirs -> ours, with what there is to say about it, or only that: what to do instead.
FOREIGN: dict[str, tuple[str, str]] = {
    # The length and the size of a run
    "--num-epochs": ("--epochs", ""),
    "--max-epochs": ("--epochs", ""),
    "--num-train-epochs": ("--epochs", ""),
    "--max-steps": ("--steps", ""),
    "--num-steps": ("--steps", ""),
    "--train-steps": ("--steps", ""),
    "--iterations": ("--steps", ""),
    "--iters": ("--steps", ""),
    "--start-epoch": ("", _RESUME),
    "-b": ("--batch-size", ""),
    "--bs": ("--batch-size", ""),
    "--train-batch-size": ("--batch-size", ""),
    "--per-device-train-batch-size": ("--batch-size", "it is that of all devices"),
    "--validation-batch-size": ("--batch-size", "evaluation has the same"),
    "-vb": ("--batch-size", "evaluation has the same"),
    "--grad-accum-steps": ("--accumulate", _PARTS),
    "--gradient-accumulation-steps": ("--accumulate", _PARTS),
    "--accum-steps": ("--accumulate", _PARTS),
    "--accum-iter": ("--accumulate", _PARTS),
    # The optimizer
    "--opt": ("--optimizer", ""),
    "--optim": ("--optimizer", ""),
    "--lr": ("--learning-rate", ""),
    "--lr-base": ("--learning-rate", "it is not scaled with the batch"),
    "--base-lr": ("--learning-rate", "it is not scaled with the batch"),
    "--blr": ("--learning-rate", "it is not scaled with the batch"),
    "--wd": ("--weight-decay", ""),
    "--norm-weight-decay": ("", "norms and biases have no --weight-decay"),
    "--opt-betas": ("--beta1", "and --beta2 is the second"),
    "--betas": ("--beta1", "and --beta2 is the second"),
    "--adam-beta1": ("--beta1", ""),
    "--adam-beta2": ("--beta2", ""),
    "--opt-eps": ("", _ADAM),
    "--eps": ("", _ADAM),
    "--clip-grad": ("--clip-norm", ""),
    "--clip-grad-norm": ("--clip-norm", ""),
    "--grad-clip": ("--clip-norm", ""),
    "--max-grad-norm": ("--clip-norm", ""),
    "--gradient-clip-val": ("--clip-norm", ""),
    "--clip-mode": ("--clip-norm", "gradients are clipped by their global norm only"),
    "--lr-scale": ("--layer-decay", ""),
    "--layer-decay-min-scale": ("--layer-decay", "it has no lower end"),
    "--head-lr": ("--head-learning-rate", ""),
    "--lr-head": ("--head-learning-rate", ""),
    # Its schedule
    "--sched": ("--schedule", ""),
    "--scheduler": ("--schedule", ""),
    "--lr-scheduler": ("--schedule", ""),
    "--lr-schedule": ("--schedule", ""),
    "--lr-scheduler-type": ("--schedule", ""),
    "--sched-on-updates": ("", "the learning rate changes with every step"),
    "--warmup": ("--warmup-steps", ""),
    "--warmup-epochs": ("--warmup-steps", _STEPS),
    "--lr-warmup-epochs": ("--warmup-steps", _STEPS),
    "--warmup-ratio": ("--warmup-steps", "without it, it is a tenth of --steps"),
    "--warmup-lr": ("--warmup-steps", "the learning rate rises from nearly 0"),
    "--lr-warmup-method": ("--warmup-steps", "the learning rate rises along a line"),
    "--lr-warmup-decay": ("--warmup-steps", "the learning rate rises from nearly 0"),
    "--min-lr": ("--final-learning-rate", ""),
    "--lr-min": ("--final-learning-rate", ""),
    "--decay-epochs": ("--decay-every", _STEPS),
    "--decay-milestones": ("--decay-every", _STEPS),
    "--lr-step-size": ("--decay-every", _STEPS),
    "--step-size": ("--decay-every", _STEPS),
    "--lr-cycle-limit": ("--restarts", "it names the steps"),
    "--lr-cycle-mul": ("--restarts", "it names the steps"),
    "--decay-rate": ("--decay-factor", ""),
    "--dr": ("--decay-factor", ""),
    "--gamma": ("--decay-factor", ""),
    "--lr-gamma": ("--decay-factor", ""),
    "--cooldown-epochs": ("", _LAST),
    "--patience-epochs": ("", _LAST),
    "--patience": ("--early-stopping", ""),
    "--early-stopping-patience": ("--early-stopping", ""),
    # What the images are
    "--data-dir": ("--data", ""),
    "--data-path": ("--data", ""),
    "--data-root": ("--data", ""),
    "--root": ("--data", ""),
    "--train-dir": ("--data", _SPLITS),
    "--val-dir": ("--data", _SPLITS),
    "--train-split": ("--data", _SPLITS),
    "--validation-split": ("--val-split", _SHARE),
    "--val-fraction": ("--val-split", _SHARE),
    "--val-ratio": ("--val-split", _SHARE),
    "--dataset": ("--preset", ""),
    "-d": ("--preset", ""),
    "--dataset-download": ("--data", "nothing is downloaded"),
    "--download": ("--data", "nothing is downloaded"),
    "--class-names": ("--class-map", ""),
    "--num-classes": ("", _CLASSES),
    "--nb-classes": ("", _CLASSES),
    "--in-chans": ("", "the channels are those of the images of --preset"),
    "--img-size": ("--image-size", ""),
    "--input-size": ("--image-size", ""),
    "--imgsz": ("--image-size", ""),
    "--resolution": ("--image-size", ""),
    "--train-crop-size": ("--image-size", ""),
    "--val-crop-size": ("--image-size", ""),
    "--val-resize-size": ("--crop-pct", "it is --image-size divided by it"),
    "-j": ("--workers", ""),
    "--num-workers": ("--workers", ""),
    "--pin-mem": ("--workers", "batches are laid on the devices ahead of the step"),
    "--max-pixels": ("--max-image-pixels", ""),
    # How they vary
    "--no-aug": ("", "--crop-padding 0 --flip 0 turn off what a preset has"),
    "--hflip": ("--flip", ""),
    "--vflip": ("", "images are turned from left to right only, by --flip"),
    "--jitter": ("--color-jitter", ""),
    "--aa": ("--randaugment", _POLICY),
    "--auto-augment": ("--randaugment", _POLICY),
    "--autoaugment": ("--randaugment", _POLICY),
    "--ra-magnitude": ("--randaugment", ""),
    "--ra-num-ops": ("--randaugment-ops", ""),
    "--scale": ("--crop-scale", ""),
    "--ratio": ("--crop-ratio", ""),
    "--padding": ("--crop-padding", ""),
    "--reprob": ("--erasing", ""),
    "--random-erase": ("--erasing", ""),
    "--random-erasing": ("--erasing", ""),
    "--remode": ("--erasing", "a rectangle is erased in one way only"),
    "--recount": ("--erasing", "one rectangle is erased"),
    "--mixup-alpha": ("--mixup", ""),
    "--cutmix-alpha": ("--cutmix", ""),
    "--mixup-prob": ("--mixup", "every batch is mixed where it is above 0"),
    "--smoothing": ("--label-smoothing", ""),
    "--bce-loss": ("--loss", "bce is one"),
    "--train-interpolation": ("--interpolation", "evaluation has the same"),
    "--crop-mode": ("--crop-pct", "pictures cover --image-size, and are cut"),
    # The network
    "-a": ("--model", ""),
    "--arch": ("--model", ""),
    "--model-kwargs": ("--model-options", ""),
    "--pretrained": ("--init-from", _PRETRAINED),
    "--initial-checkpoint": ("--init-from", ""),
    "--weights": ("--init-from", ""),
    "--finetune": ("--init-from", _HEAD),
    "--reset-head": ("--new-head", ""),
    "--reset-classifier": ("--new-head", ""),
    "--freeze-layers": ("--freeze", ""),
    "--freeze-backbone": ("--freeze", "it takes names, of which backbone is one"),
    "--linear-probe": ("--freeze", _PROBE),
    "--drop": ("", _DROP),
    "--drop-rate": ("", _DROP),
    "--dropout": ("", _DROP),
    "--drop-path-rate": ("--drop-path", ""),
    "--drop-connect": ("--drop-path", ""),
    "--stochastic-depth-prob": ("--drop-path", ""),
    "--experts": ("--num-experts", ""),
    "--temperature": ("--temperature-start", "and --temperature-end is where it ends"),
    "--ema": ("--ema-decay", _EMA),
    "--model-ema": ("--ema-decay", _EMA),
    "--model-ema-decay": ("--ema-decay", ""),
    "--model-ema-warmup": ("--ema-decay", "after n steps it is n / (n + 9) at most"),
    "--model-ema-steps": ("--ema-decay", "the average follows every step"),
    "--sync-bn": ("", _BN),
    "--dist-bn": ("", _BN),
    "--split-bn": ("", _BN),
    # How it is computed
    "--gradient-checkpointing": ("--grad-checkpointing", ""),
    "--activation-checkpointing": ("--grad-checkpointing", ""),
    "--remat": ("--grad-checkpointing", ""),
    "--amp": ("--dtype", _BF16),
    "--amp-dtype": ("--dtype", _BF16),
    "--fp16": ("--dtype", _BF16),
    "--bf16": ("--dtype", _BF16),
    "--precision": ("--dtype", _BF16),
    "--mixed-precision": ("--dtype", _BF16),
    "--device": ("", _DEVICE),
    "--gpu": ("", _DEVICE),
    "--gpus": ("", _DEVICE),
    "--cpu": ("", _DEVICE),
    "--no-cuda": ("", _DEVICE),
    "--channels-last": ("", "channels are last always"),
    "--compile": ("", _COMPILE),
    "--torchcompile": ("", _COMPILE),
    "--torchscript": ("", _COMPILE),
    "--local-rank": ("--process-id", ""),
    "--rank": ("--process-id", ""),
    "--world-size": ("--num-processes", ""),
    "--dist-url": ("--coordinator", ""),
    "--distributed": ("", _DISTRIBUTED),
    # What is kept and shown of a run
    "-o": ("--out", ""),
    "--output": ("--out", ""),
    "--output-dir": ("--out", ""),
    "--save-dir": ("--out", ""),
    "--log-dir": ("--out", ""),
    "--workdir": ("--out", ""),
    "--work-dir": ("--out", ""),
    "--run-dir": ("--out", ""),
    "--experiment": ("--out", "a run is named by its directory"),
    "--exp-name": ("--out", "a run is named by its directory"),
    "--run-name": ("--out", "a run is named by its directory"),
    "--name": ("--out", "a run is named by its directory"),
    "--force": ("--overwrite", ""),
    "--resume": ("", _RESUME),
    "--auto-resume": ("", _RESUME),
    "--resume-from": ("", _RESUME),
    "--resume-from-checkpoint": ("", _RESUME),
    "--checkpoint": ("", f"{_RESUME}; --init-from starts from weights alone"),
    "--no-resume-opt": ("--init-from", "it starts from weights alone"),
    "--checkpoint-hist": ("--keep-checkpoints", ""),
    "--save-total-limit": ("--keep-checkpoints", ""),
    "--save-every": ("--checkpoint-every", _EVERY),
    "--save-freq": ("--checkpoint-every", _EVERY),
    "--save-interval": ("--checkpoint-every", _EVERY),
    "--save-steps": ("--checkpoint-every", ""),
    "--recovery-interval": ("--checkpoint-every", _EVERY),
    "--checkpoint-interval": ("--checkpoint-every", _EVERY),
    "--log-interval": ("--log-every", _EVERY),
    "--log-freq": ("--log-every", _EVERY),
    "--logging-steps": ("--log-every", ""),
    "--print-freq": ("--log-every", _EVERY),
    "-p": ("--log-every", _EVERY),
    "--eval-interval": ("--eval-every", _EVERY),
    "--eval-freq": ("--eval-every", _EVERY),
    "--eval-steps": ("--eval-every", ""),
    "--val-interval": ("--eval-every", _EVERY),
    "--eval-metric": ("", "the best weights are those of the highest accuracy"),
    "--eval": ("", _EVALUATE),
    "--evaluate": ("", _EVALUATE),
    "-e": ("", _EVALUATE),
    "--test-only": ("", _EVALUATE),
    "--log-wandb": ("", _WANDB),
    "--wandb": ("", _WANDB),
    "--tensorboard": ("", _WANDB),
    "--random-seed": ("--seed", ""),
    "--manual-seed": ("--seed", ""),
    "--config-file": ("--config", ""),
    "--cfg": ("--config", ""),
    "-c": ("--config", ""),
}
# From here on, names are so alike that one is a slip of the other, or may be.
SLIP, ALIKE = 0.75, 0.7


def hint_for(word: str, known: Collection[str], training: Collection[str]) -> str:
    """Returns what somebody may have meant by a flag that there is not.

    Args:
        word: What was typed.
        known: The flags of the command.
        training: Those of training, for which the table is made.

    Returns:
        A clause; it is empty if nothing is like the word.

    Example:
        >>> flags = ["--learning-rate", "--steps"]
        >>> hint_for("--lr=0.1", flags, flags)
        'did you mean --learning-rate?'
    """
    name = _name_of(word, known, training)
    if name is None:
        return ""
    flag, remark = (name, "") if name in known else FOREIGN.get(name, (name, ""))
    if flag and flag not in known:
        return f"training has {flag}"
    if flag:
        return f"did you mean {flag}?" + (f" ({remark})" if remark else "")
    return remark if known == training else f"in training, {remark}"


def _name_of(
    word: str, known: Collection[str], training: Collection[str]
) -> str | None:
    """Returns the flag of ours or of others that a word is, or is most like."""
    written = word.split("=")[0].replace("_", "-").lower()
    number = re.fullmatch(r"(-[a-z])\d+", written)  # such as -j4
    ways = written, f"-{written}", number[1] if number else written
    exact = [way for way in ways if way in known or way in FOREIGN]
    exact = exact or _most_like(written, known, SLIP)
    exact = exact or [way for way in ways if way in training]
    found = exact or _most_like(written, {*known, *training, *FOREIGN}, ALIKE)
    return found[0] if found else None


def _most_like(written: str, names: Collection[str], ratio: float) -> list[str]:
    bare = {name.lstrip("-"): name for name in sorted(names)}
    meant = written.lstrip("-").removeprefix("no-")
    close = difflib.get_close_matches(meant, bare, 1, ratio)
    return [bare[each] for each in close]
