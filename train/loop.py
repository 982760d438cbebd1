"""The training program, from the first line to the last."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from train.data import presets
from train.data.batches import (
    check_batch_size,
    to_devices,
    training_batches,
)
from train.data.dataset import Dataset, Part
from train.errors import TrainError, TrainingStopped
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.costs import costs_of
from train.learning.evaluation import Evaluation, evaluate
from train.learning.fine_tuning import described
from train.learning.model import create, twin_of
from train.learning.step import (
    create_state,
    make_eval_step,
    make_train_step,
    params_sha256,
)
from train.machines import devices
from train.machines.signals import StopSignals
from train.showing.clock import Clock
from train.showing.display import Display, accuracies
from train.showing.figures import draw_routing
from train.showing.report import write_report
from train.showing.routing_words import faults
from train.showing.tensorboard import TensorBoard
from train.storage.checkpoint import Checkpoints
from train.storage.finite import check_finite
from train.storage.run_directory import RunDirectory, find_finished, with_restarts
from train.storage.run_files import (
    BEST_WEIGHTS,
    CHECKPOINTS,
    EMA_WEIGHTS,
    PICTURE,
    TWIN,
    TWIN_FIGURES,
    WEIGHTS,
    weights_to_start_from,
)


@dataclasses.dataclass(frozen=True)
class Shared:
    """What a run has in common with that of its static twin.

    Attributes:
        mesh: The devices that share a batch.
        dataset: The images.
        stop_signals: Whether the program is told to stop.
    """

    mesh: Mesh
    dataset: Dataset
    stop_signals: StopSignals


def train(config: Config) -> dict[str, Any]:
    """Trains, or goes on where a run was stopped; evaluates and writes the results.

    Args:
        config: The flags.

    Returns:
        The content of summary.json.

    Raises:
        TrainError: If a flag does not fit the data, the devices or the disk; as
            `TrainingFailed` if the run cannot go on, as `TrainingStopped` if it was
            told to stop and has saved all that it needs to go on.
    """
    # A process that fails leaves the others before it closes what they share.
    with contextlib.ExitStack() as closing, devices.start(config):
        stop_signals = closing.enter_context(StopSignals())
        mesh = devices.make_mesh()

        finished = find_finished(config)
        if finished is not None:
            Display(finished.get("steps", 0), devices.is_writer()).say(
                f"the run in {config.out} is finished, with {accuracies(finished)}; "
                "--overwrite starts it anew"
            )
            return finished

        dataset = presets.load(config)
        devices.check_alike("images (--data)", dataset.identity())
        check_batch_size(config, dataset, mesh.size)
        config = with_restarts(config.for_images(len(dataset.train)))
        length = [config.total_steps, *config.restarts]
        devices.check_alike("lengths of the run (--steps, --out)", length)
        return train_one(config, Shared(mesh, dataset, stop_signals), closing)


def train_one(
    config: Config, shared: Shared, closing: contextlib.ExitStack
) -> dict[str, Any]:
    """Trains one model, after its static twin where that is asked for.

    Args:
        config: The flags.
        shared: Where to train, and on which images.
        closing: Takes what is to be closed after the run.

    Returns:
        The content of its summary.json.
    """
    started = time.perf_counter()
    dataset, mesh = shared.dataset, shared.mesh

    # What can be refused is, before a file is written.
    start = weights_to_start_from(config.init_from)
    model = create(
        dataclasses.replace(config, init_from=start),
        *(dataset.num_classes, dataset.image_shape[-1]),
        nnx.Rngs(config.seed),
    )
    costs = costs_of(config, dataset, model)
    run = closing.enter_context(RunDirectory(config, devices.is_writer(), dataset))

    twin: dict[str, Any] = {}
    if config.twin:
        began = time.perf_counter()
        twin = train_twin(config, run, shared, closing)
        started += time.perf_counter() - began  # its time is its own

    # Devices. Images lie on one device each, all else on every one, or with --fsdp
    # cut among them; the compiler adds what crosses between them.
    everywhere, by_image = devices.everywhere(mesh), devices.by_image(mesh)
    display = closing.enter_context(Display(config.total_steps, run.is_writer))
    for line in described(model, config):
        display.say(line)

    # State: a static description and a tree of arrays, so that one plain jax.jit
    # can donate the arrays; as at the start, or as the last checkpoint has it.
    graphdef, state = nnx.split(create_state(model, config))
    shardings = devices.state_shardings(state, mesh, fsdp=config.fsdp)
    state = devices.place(state, shardings)
    checkpoints = closing.enter_context(
        Checkpoints(
            *(run.path / CHECKPOINTS, config.keep_checkpoints),
            *(run.fingerprint, run.run_id, run.check_is_there),
            earlier=run.earlier_fingerprints,
        )
    )
    done, best, seconds, wall_seconds = 0, None, 0.0, 0.0
    restored = checkpoints.restore(state)
    if restored is not None:
        done, state = restored.step, restored.state
        best, seconds = restored.record["best"], restored.record["seconds"]
        wall_seconds = restored.record["wall_seconds"]
        anew = done in config.restarts and config.schedule in ("cosine", "linear")
        where = ", where the learning rate starts anew" if anew else ""
        display.say(f"going on after step {done}, from its checkpoint{where}")
    run.rewind(done)
    board = closing.enter_context(TensorBoard(run, done))

    def log(record: dict[str, Any]) -> None:
        run.log(record)
        board.log(record)

    batches = closing.enter_context(
        contextlib.closing(
            training_batches(
                *(dataset.train, config.batch_size, config.seed),
                start=done,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=config.workers,
                on_bad_image=config.on_bad_image,
            )
        )
    )

    def next_batch() -> tuple[Any, Any]:
        batch = next(batches)
        return to_devices((batch.images, batch.labels), by_image)

    # The first one starts the processes that read, before any clock does.
    upcoming = [next_batch()] if done < config.total_steps else []

    # Compilation, ahead of time, so that it can be told from training.
    display.say(
        f"{config.preset}: {dataset.in_words()}; {costs['parameters']:,} parameters; "
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s)"
    )
    shape = config.batch_size, *dataset.image_shape
    compile_started = time.perf_counter()
    train_step = (
        make_train_step(
            *(graphdef, config, Augmentation.of(config, dataset)),
            *(dataset.num_classes, shardings, everywhere),
        )
        .lower(
            state,
            jax.ShapeDtypeStruct(shape, np.uint8, sharding=by_image),
            jax.ShapeDtypeStruct(shape[:1], np.int32, sharding=by_image),
        )
        .compile()
    )
    compile_seconds = time.perf_counter() - compile_started
    display.say(f"compiled in {compile_seconds:.1f} s")
    eval_steps = {
        prefix: make_eval_step(
            *(graphdef, dataset.num_classes, (dataset.mean, dataset.std)),
            everywhere,
            average=average,
        )
        for prefix, average in (("", False), ("ema_", True))
        if not average or config.ema_decay is not None
    }

    def evaluate_all(step: int, part: Part) -> dict[str, Evaluation]:
        evaluations = {}
        for prefix, eval_step in eval_steps.items():
            found = evaluate(eval_step, state, dataset, config, mesh, part)
            check_finite(found.scores(prefix), step, config, checkpoints)
            evaluations[prefix] = found
        return evaluations

    # Training. The clock runs only here: neither compilation nor evaluation counts.
    clock = Clock(config.batch_size, done, seconds)
    pending: list[dict[str, jax.Array]] = []  # read together, to wait only once
    evaluations: dict[str, Evaluation] = {}
    taken = done
    gives_up = best is not None and config.gives_up_at(done, best["step"])
    display.start(done)
    clock.start()
    for step in range(done + 1, config.total_steps + 1):
        if gives_up:
            break
        taken = step
        state, metrics = train_step(state, *upcoming.pop())
        pending.append(metrics)
        is_last = step == config.total_steps
        is_end = config.ends_at(step)
        is_logged = is_end or step % config.log_every == 0
        is_evaluated = config.evaluates_at(step)
        is_told_to_stop = shared.stop_signals.stop_after_step() and not is_last
        is_saved = is_end or is_told_to_stop or step % config.checkpoint_every == 0
        if not is_last:  # The step is still under way, and the host has time.
            upcoming.append(next_batch())
        if not (is_logged or is_evaluated or is_saved):
            continue
        rows = jax.device_get(pending)
        pending.clear()
        clock.stop(step)
        for number, row in enumerate(rows, start=step - len(rows) + 1):
            check_finite(row, number, config, checkpoints, dataset.train)
        if is_logged:
            record = {
                "step": step,
                **{name: float(value) for name, value in rows[-1].items()},
                "images_per_second": clock.lap_rate(),
            }
            log(record)
            display.logged(record)
        is_best = False
        if is_evaluated:
            evaluations = evaluate_all(step, dataset.judged_on)
            record = {"step": step}
            for prefix, evaluation in evaluations.items():
                record |= evaluation.scores(prefix)
            log(record | evaluations[""].routing())
            display.evaluated(record)
            # The averages are what one would use, where there are any.
            accuracy = [*evaluations.values()][-1].accuracy
            is_best = best is None or accuracy > best["accuracy"]
            if is_best:
                best = {"step": step, "accuracy": accuracy}
                whole = nnx.merge(graphdef, devices.gather(state))
                run.write_weights(BEST_WEIGHTS, whole.average or whole.model)
            gives_up = best is not None and config.gives_up_at(step, best["step"])
        if is_saved or is_best or gives_up:
            record = {
                "best": best,
                "seconds": clock.seconds,
                "wall_seconds": wall_seconds + time.perf_counter() - started,
            }
            checkpoints.save(step, state, record, is_best=is_best)
        if is_told_to_stop:
            checkpoints.wait()
            raise TrainingStopped(
                f"stopped after step {step}, and saved; the same command with "
                f"--out {run.path}, and without --overwrite, goes on"
            )
        clock.start()

    # Results.
    stopped_early = taken < config.total_steps
    if stopped_early:
        display.say(
            f"stopped early, after step {taken}: {config.early_stopping} evaluations "
            "without a better accuracy"
        )
    evaluations = evaluations or evaluate_all(taken, dataset.judged_on)
    found = [evaluations]
    if dataset.judged_on != "test" and dataset.has("test"):
        found.append(evaluate_all(taken, "test"))
    checkpoints.wait()
    whole = nnx.merge(graphdef, devices.gather(state))
    summary = {
        "steps": taken,
        "stopped_early": stopped_early,
        f"best_{dataset.judged_on}_accuracy": best["accuracy"] if best else None,
        "best_step": best["step"] if best else None,
        "images_per_second": clock.rate(),
        "compile_seconds": compile_seconds,
        "wall_seconds": wall_seconds + time.perf_counter() - started,
        **costs,
        **twin,
        "params_sha256": params_sha256(whole.model),
    }
    for each in found:
        for prefix, evaluation in each.items():
            summary = evaluation.scores(prefix) | summary
    final = found[-1][""]
    run.write_weights(WEIGHTS, whole.model)
    if whole.average is not None:
        run.write_weights(EMA_WEIGHTS, whole.average)
    if run.is_writer and final.attention:
        run.write(PICTURE, draw_routing(final.attention, final.part))
    for fault in faults(final):
        display.say(f"note: {fault}")
    with run.writing() as is_mine:
        if is_mine:
            write_report(run.path, dataset, final, summary)
    run.finish(summary)
    display.say(
        f"{accuracies(summary)} after {summary['wall_seconds']:.1f} s; results in "
        f"{run.path}"
    )
    return summary


def train_twin(
    config: Config,
    run: RunDirectory,
    shared: Shared,
    closing: contextlib.ExitStack,
) -> dict[str, Any]:
    """Trains the static twin, or goes on with it, as a run of its own.

    It comes before the model itself: so the summary of that is written last, once, and
    stands for both.

    Args:
        config: The flags of the model itself.
        run: The directory of its run, below which that of the twin is.
        shared: Where to train, and on which images.
        closing: Closes what is left open if the twin's run fails.

    Returns:
        What came out of it, under the names that the summary has for them.
    """
    config = dataclasses.replace(twin_of(config), out=run.path / TWIN)
    summary = find_finished(config)
    if summary is None:
        display = Display(config.total_steps, run.is_writer)
        display.say(f"its static twin first, in {config.out}")
        own = closing.enter_context(contextlib.ExitStack())
        try:
            summary = train_one(config, shared, own)
        except TrainingStopped:
            raise TrainingStopped(
                "stopped in the run of the static twin, and saved; the same command "
                f"with --out {run.path}, and without --overwrite, goes on"
            ) from None
        except TrainError as error:
            raise type(error)(f"the static twin: {error}") from error
        own.close()
        display.say("and now the model itself")
    return {f"twin_{name}": summary[name] for name in TWIN_FIGURES if name in summary}
