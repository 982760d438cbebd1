"""Whether a run can go on: a value that is no finite number ends it."""

import math
from typing import Any

from train.data.batches import batch_indices
from train.data.dataset import Source
from train.data.split import original_numbers
from train.errors import TrainingFailed
from train.flags.config import Config
from train.storage.checkpoint import Checkpoints


def check_finite(
    values: dict[str, Any],
    step: int,
    config: Config,
    checkpoints: Checkpoints,
    source: Source | None = None,
) -> None:
    """Raises a TrainingFailed unless the values of a step are finite numbers.

    Args:
        values: The metrics of the step, by name.
        step: The step, from 1.
        config: The flags.
        checkpoints: Those of the run; the last good one is named.
        source: The training images; None if the values are not those of a batch. It
            tells which images the batch had.
    """
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    name = wrong[0] if "loss" not in wrong else "loss"
    checkpoints.wait()
    latest = checkpoints.latest_step
    good = (
        "there is no checkpoint yet"
        if latest is None
        else (f"the last good checkpoint is that of step {latest}")
    )
    batch = ""
    if source is not None:
        indices = batch_indices(len(source), config.batch_size, config.seed, step - 1)
        indices = original_numbers(source, indices)
        batch = f"; the training images of its batch are {', '.join(map(str, indices))}"
    what = f"the {name.replace('_', ' ')} is {float(values[name])} at step {step}"
    raise TrainingFailed(
        f"{what}; {good}; start anew with a lower --learning-rate or --clip-norm, or a "
        f"higher --warmup-steps or --temperature-end{batch}"
    )
