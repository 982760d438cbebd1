"""The flags of the run itself: its seed, its directory, its checkpoints and devices."""

import dataclasses

from train.flags.checks import Flags, OptionalAddress, OptionalInt, OptionalPath, Switch


@dataclasses.dataclass(frozen=True)
class RunFlags(Flags):
    """The flags of the run itself.

    Attributes:
        config: A file with flags, for those that are not typed. It is TOML, such as
            `batch_size = 32`, or the config.json of a run or its directory, of which
            all but the place is taken. Paths in it are as if they were typed.
        seed: Where the initial parameters, the order of the images, their augmentation
            and the dropout come from. The same seed and flags on the same machine give
            the same parameters.
        out: The directory for the results, created if missing. The same command again
            goes on where the run in it was stopped. Without it, a fresh one below
            runs/, named by preset and time. Several processes must be given one.
        overwrite: Start the run in --out anew, which removes the old one with its twin
            and its export, or accept a directory with other files, which are left
            alone.
        log_every: Every how many steps to log the metrics; the last step is always
            logged.
        eval_every: Every how many steps to evaluate on the test images, or on those
            for validation of --val-split; the last step always is.
        checkpoint_every: Every how many steps to save a checkpoint, from which a run
            that was stopped, or died, goes on. A step with the best accuracy so far
            is saved too.
        keep_checkpoints: How many of the latest checkpoints to keep, beside the best.
        coordinator: HOST:PORT of process 0, for a run of several processes; on TPU and
            under SLURM it is found without.
        num_processes: How many processes share the run.
        process_id: Which one of them this is, from 0.
        fsdp: Shard parameters and optimizer state over the devices too, for a model
            that does not fit on one.
    """

    config: OptionalPath = None
    seed: int = 0
    out: OptionalPath = None
    overwrite: Switch = False
    log_every: int = 20
    eval_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    coordinator: OptionalAddress = None
    num_processes: OptionalInt = None
    process_id: OptionalInt = None
    fsdp: Switch = False

    def check_run(self) -> None:
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.require("seed", 0 <= self.seed < 2**32, "be from 0 to 4294967295")
        self.require_at_least_one(
            *("log_every", "eval_every", "checkpoint_every", "keep_checkpoints"),
            "num_processes",
        )
        together = ("coordinator", "num_processes", "process_id")
        given = [name for name in together if getattr(self, name) is not None]
        for name in given:
            rule = (
                "come with the others of --coordinator, --num-processes, --process-id"
            )
            self.require(name, len(given) == len(together), rule)
        if self.coordinator is not None:
            _, colon, port = self.coordinator.rpartition(":")
            is_address = bool(colon) and port.isdigit() and 0 < int(port) < 65536
            self.require("coordinator", is_address, "be HOST:PORT")
        if self.process_id is not None and self.num_processes is not None:
            rule = f"be from 0 to --num-processes - 1 (={self.num_processes - 1})"
            self.require("process_id", 0 <= self.process_id < self.num_processes, rule)
            rule = "be given to a run of several processes, which must share it"
            is_shared = self.out is not None or self.num_processes == 1
            self.require("out", is_shared, rule)
