"""The training program: reproducible, honest in its files, clear in its refusals."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import train.step
from dynconv_jax import DynamicNet, Temperature
from dynconv_jax.weights import load_weights
from parity_tests.parity import TOLERANCES
from train.__main__ import main
from train.config import Config, parse
from train.data import (
    Images,
    check_batch_size,
    evaluation_batches,
    load_digits,
    training_batches,
)
from train.errors import TrainError
from train.report import FILES, draw_routing
from train.step import (
    decayed_parameters,
    learning_rate_schedule,
    make_eval_step,
    make_optimizer,
    make_train_step,
    params_sha256,
    temperature_schedule,
)

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

ROOT = Path(__file__).parent.parent
SMALL = ["--steps=3", "--batch-size=16", "--num-experts=2", "--log-every=1"]
BALANCED = ["--load-balance=0.1", "--learning-rate=1e-5"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run(out: Path, *flags: str) -> Path:
    assert main([*SMALL, f"--out={out}", *flags]) == 0
    return out


def read_summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def read_metrics(out: Path) -> list[dict]:
    return [*map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True, scope="module")
def compilation_cache(tmp_path_factory):
    """Runs with the same flags compile once, which is most of the time of a test."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a short run with seed 0."""
    return run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def balanced(tmp_path_factory) -> Path:
    """The directory of the same run with the load-balancing loss."""
    return run(tmp_path_factory.mktemp("runs") / "balanced", *BALANCED)


@dataclasses.dataclass
class OneStep:
    """A state, and the one that a training step made of it."""

    config: Config
    graphdef: nnx.GraphDef
    donated: nnx.State
    before: nnx.State
    after: nnx.State
    metrics: dict

    def changed(self, kind: type, part: int = 0) -> list[bool]:
        before, after = (
            jax.tree.leaves(nnx.split_state(state[part], kind, ...)[0])
            for state in (self.before, self.after)
        )
        pairs = zip(before, map(np.asarray, after), strict=True)
        return [not np.array_equal(old, new) for old, new in pairs]


@pytest.fixture(scope="module")
def small_images() -> Images:
    data = load_digits().train
    return Images(data.images[:16], data.labels[:16])


def make_state(config: Config):
    everywhere = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec())
    model = DynamicNet(
        1,
        num_experts=config.num_experts,
        temperature=config.temperature_start,
        router_dropout=config.router_dropout,
        implementation="experts",
        rngs=nnx.Rngs(0),
    )
    graphdef, state = nnx.split((model, make_optimizer(model, config)))
    return graphdef, jax.device_put(state, everywhere), everywhere


@pytest.fixture(scope="module")
def one_step(small_images) -> OneStep:
    config = Config(
        steps=10, batch_size=16, num_experts=2, router_dropout=0.5, load_balance=0.1
    )
    graphdef, state, everywhere = make_state(config)
    before = jax.tree.map(as_array, state)
    step = make_train_step(graphdef, config, everywhere)
    after, metrics = step(state, small_images.images, small_images.labels)
    after = jax.tree.map(as_array, after)
    return OneStep(config, graphdef, state, before, after, metrics)


def as_array(leaf: jax.Array) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


# Reproducibility


def test_same_seed_gives_same_parameters(finished, tmp_path):
    again = run(tmp_path / "again")
    assert (
        read_summary(again)["params_sha256"] == read_summary(finished)["params_sha256"]
    )


def test_another_seed_gives_other_parameters(finished, tmp_path):
    other = run(tmp_path / "other", "--seed=1")
    assert (
        read_summary(other)["params_sha256"] != read_summary(finished)["params_sha256"]
    )


def test_eight_devices_give_the_losses_of_one(balanced, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "train", *SMALL, *BALANCED, f"--out={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    one, eight = (
        np.array([row.get("loss", row.get("test_loss")) for row in read_metrics(out)])
        for out in (balanced, tmp_path)
    )
    np.testing.assert_allclose(eight, one, rtol=TOLERANCES["float32"].relative)


# What a run leaves behind


def test_run_writes_its_files_and_no_others(finished):
    assert sorted(contents(finished)) == sorted(FILES)


def test_metrics_have_a_line_for_each_logged_step(finished):
    logged = [row for row in read_metrics(finished) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    for row in logged:
        assert set(row) == {
            "step",
            "loss",
            "accuracy",
            "learning_rate",
            "temperature",
            "images_per_second",
        }


def test_last_step_is_evaluated(finished):
    *_, last = read_metrics(finished)
    assert set(last) == {"step", "test_loss", "test_accuracy"}
    assert last["step"] == 3


def test_last_step_is_logged_whatever_the_interval(tmp_path):
    out = run(tmp_path / "run", "--log-every=2", "--eval-every=2")
    logged = [row["step"] for row in read_metrics(out) if "loss" in row]
    evaluated = [row["step"] for row in read_metrics(out) if "test_loss" in row]
    assert logged == evaluated == [2, 3]


def test_summary_has_the_figures_of_the_run(finished):
    summary = read_summary(finished)
    assert set(summary) == {
        "test_accuracy",
        "test_loss",
        "steps",
        "images_per_second",
        "compile_seconds",
        "wall_seconds",
        "parameters",
        "params_sha256",
    }
    assert summary["test_loss"] == read_metrics(finished)[-1]["test_loss"]


def test_throughput_leaves_compilation_out(finished):
    summary = read_summary(finished)
    images = 16 * summary["steps"]
    assert summary["compile_seconds"] > 0
    training_seconds = images / summary["images_per_second"]
    assert training_seconds + summary["compile_seconds"] < summary["wall_seconds"]


def test_config_names_every_flag_with_its_value(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(Config)}
    assert config["num_experts"] == 2
    assert config["temperature_steps"] == 1


def test_weights_load_back(finished):
    model = DynamicNet(1, num_experts=2, rngs=nnx.Rngs(7))
    load_weights(model, finished / "model.safetensors")
    assert params_sha256(model) == read_summary(finished)["params_sha256"]


def test_routing_is_drawn_as_png(finished):
    assert (finished / "routing.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(("routers", "experts"), [(1, 1), (6, 12)])
def test_routing_is_drawn_for_any_number_of_routers(routers, experts):
    table = np.full((10, experts), 1 / experts)
    picture = draw_routing({f"layer{index}": table for index in range(routers)})
    assert picture.startswith(PNG_SIGNATURE)


def test_run_without_out_gets_a_fresh_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(SMALL) == 0
    assert len(list((tmp_path / "runs").glob("digits-*"))) == 2


# Directories that hold something


def test_directory_with_results_is_refused_and_untouched(finished, capsys):
    before = contents(finished)
    assert main([*SMALL, f"--out={finished}"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(finished) == before


def test_overwrite_replaces_its_own_files_only(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    run(tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {} not in read_metrics(tmp_path)


# Refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stepz=3"], ["--stepz", "did you mean --steps?"]),
        (["surplus"], ["'surplus'", "--help"]),
        (["--steps=many"], ["--steps (=many)", "whole number"]),
        (["--top-k", "x"], ["--top-k (=x)", "whole number"]),
        (["--learning-rate", "1.0.0"], ["--learning-rate (=1.0.0)", "number"]),
        (["--steps"], ["--steps needs a value"]),
        (["--num-experts=9", "--top-k=8", "--seed=x"], ["--seed (=x)"]),
        (["--preset=moons"], ["--preset (=moons)", "digits"]),
        (["--steps=0"], ["--steps (=0)", "at least 1"]),
        (["--num-experts=0"], ["--num-experts (=0)", "at least 1"]),
        (["--reduction=0"], ["--reduction (=0)", "at least 1"]),
        (["--log-every=0"], ["--log-every (=0)", "at least 1"]),
        (["--eval-every=-1"], ["--eval-every (=-1)", "at least 1"]),
        (["--batch-size=1"], ["--batch-size (=1)", "at least 2"]),
        (["--batch-size=1438"], ["--batch-size (=1438)", "at most 1437"]),
        (["--seed=-1"], ["--seed (=-1)", "from 0"]),
        (["--learning-rate=0"], ["--learning-rate (=0.0)", "positive"]),
        (["--learning-rate=inf"], ["--learning-rate (=inf)", "finite"]),
        (["--weight-decay=-1"], ["--weight-decay (=-1.0)", "at least 0"]),
        (["--router-weight-decay=nan"], ["--router-weight-decay (=nan)", "finite"]),
        (["--load-balance=-1"], ["--load-balance (=-1.0)", "at least 0"]),
        (["--router-dropout=1"], ["--router-dropout (=1.0)", "less than 1"]),
        (["--temperature-start=0"], ["--temperature-start (=0.0)", "positive"]),
        (["--temperature-end=-2"], ["--temperature-end (=-2.0)", "positive"]),
        (["--temperature-steps=0"], ["--temperature-steps (=0)", "at least 1"]),
        (["--top-k=5"], ["--top-k (=5)", "--num-experts (=4)"]),
        (["--top-k=0"], ["--top-k (=0)", "from 1"]),
        (["--steps=5", "--warmup-steps=5"], ["--warmup-steps (=5)", "less than"]),
    ],
)
def test_bad_flag_is_refused_in_one_line(flags, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([f"--out={out}", *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("train: error: ")
    assert message.count("\n") == 1
    assert [word for word in words if word not in message] == []
    assert not out.exists()


def test_out_below_a_file_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([f"--out={tmp_path / 'file' / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"train: error: --out (={tmp_path / 'file' / 'out'})")
    assert message.count("\n") == 1


def test_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(TrainError, match=r"--batch-size \(=20\).*8 devices.*16"):
        check_batch_size(Config(batch_size=20), load_digits(), device_count=8)


def test_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    flags = ["--learning-rate=1e30", "--warmup-steps=0"]
    assert main([*SMALL, *flags, f"--out={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("train: error: the loss is nan at step 2;")
    assert message.count("\n") == 1
    assert not (tmp_path / "summary.json").exists()


def test_help_describes_the_flags_and_succeeds(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    for name in ("--temperature-start", "--router-weight-decay", "--overwrite"):
        assert name in printed


def test_flags_arrive_in_the_configuration():
    config = parse(["--steps", "30", "--top-k", "2", "--out", "here", "--overwrite"])
    assert config == Config(steps=30, top_k=2, out=Path("here"), overwrite=True)


# Data


def test_test_images_are_not_trained_on():
    data = load_digits()
    trained = {image.tobytes() for image in data.train.images}
    tested = {image.tobytes() for image in data.test.images}
    assert len(tested) > 0
    assert trained.isdisjoint(tested)


def test_split_is_always_the_same():
    one, other = load_digits(), load_digits()
    np.testing.assert_array_equal(one.test.images, other.test.images)
    np.testing.assert_array_equal(one.train.labels, other.train.labels)


def test_split_keeps_the_shares_of_the_classes():
    data = load_digits()
    counts = np.bincount(data.test.labels) + np.bincount(data.train.labels)
    shares = np.bincount(data.test.labels) / counts
    # Whole images: each class may be off by one of them.
    assert np.all(np.abs(shares - 0.2) <= 1 / counts)


def test_epoch_sees_each_image_once_in_an_order_of_its_own():
    labels = np.arange(12, dtype=np.int32)
    batches = training_batches(Images(labels[:, None], labels), 4, seed=0)
    first, second = (
        np.concatenate([next(batches).labels for _ in range(3)]) for _ in range(2)
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert not np.array_equal(first, second)


def test_order_follows_from_the_seed():
    data = load_digits().train
    one, same, other = (
        next(training_batches(data, 16, seed)).labels for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_evaluation_sees_each_image_once_in_batches_of_one_size():
    labels = np.arange(10, dtype=np.int32)
    data = Images(np.zeros((10, 2, 2, 1), np.float32), labels)
    batches = list(evaluation_batches(data, 4))
    assert {batch.images.shape for batch, _ in batches} == {(4, 2, 2, 1)}
    seen = [label for batch, mask in batches for label in batch.labels[mask == 1]]
    assert seen == list(range(10))


# The step


def test_step_advances_every_parameter(one_step):
    assert all(one_step.changed(nnx.Param))


def test_step_advances_every_batch_statistic(one_step):
    assert all(one_step.changed(nnx.BatchStat))


def test_step_advances_the_dropout_stream(one_step):
    assert any(one_step.changed(nnx.RngCount))


def test_step_advances_moments_and_counts_of_the_optimizer(one_step):
    assert all(one_step.changed(nnx.OptState, part=1))


def test_step_writes_the_temperature_of_the_schedule(one_step):
    graphdef, state, everywhere = make_state(one_step.config)
    written = []
    step = make_train_step(graphdef, one_step.config, everywhere)
    images = np.zeros((16, 8, 8, 1), np.float32)
    labels = np.zeros(16, np.int32)
    for _ in range(2):
        state, metrics = step(state, images, labels)
        temperatures = jax.tree.leaves(nnx.split_state(state[0], Temperature, ...)[0])
        assert {float(each) for each in temperatures} == {float(metrics["temperature"])}
        written.append(float(metrics["temperature"]))
    schedule = temperature_schedule(one_step.config)
    assert written == [schedule(0), schedule(1)]


def test_step_donates_its_state(one_step):
    # The step writes the temperatures without reading them, so they are not passed.
    _, donated = nnx.split_state(one_step.donated, Temperature, ...)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


def test_all_temperatures_share_one_compilation(tmp_path, monkeypatch):
    traced = []

    def counting(model, value):
        traced.append(value)
        return set_temperature(model, value)

    set_temperature = train.step.set_temperature
    monkeypatch.setattr(train.step, "set_temperature", counting)
    out = run(tmp_path / "run")
    temperatures = {row["temperature"] for row in read_metrics(out) if "loss" in row}
    assert len(temperatures) > 1
    assert len(traced) == 1


def test_load_balance_is_part_of_the_loss(finished, balanced):
    # Before the first update the two runs are in the same state.
    assert read_metrics(balanced)[0]["loss"] > read_metrics(finished)[0]["loss"]


def test_masked_images_do_not_count_in_evaluation(one_step, small_images):
    graphdef, state, everywhere = make_state(one_step.config)
    step = make_eval_step(graphdef, 10, everywhere)
    mask = (np.arange(16) < 9).astype(np.float32)
    blank = small_images.images * mask[:, None, None, None]
    whole = step(state, small_images.images, small_images.labels, mask)
    filled = step(state, blank, small_images.labels, mask)
    jax.tree.map(np.testing.assert_array_equal, whole, filled)
    table = whole["attention"]["stage1.dyn.router"]
    assert table.shape == (10, 2)
    np.testing.assert_allclose(
        table.sum(), mask.sum(), rtol=TOLERANCES["float32"].relative
    )


# The optimizer


def test_decay_has_two_groups_and_spares_norms_and_biases():
    model = DynamicNet(1, num_experts=2, rngs=nnx.Rngs(0))
    own, routing = (dict(nnx.to_flat_state(mask)) for mask in decayed_parameters(model))
    groups = {".".join(map(str, path)): (own[path], routing[path]) for path in own}
    assert groups["stage2.dyn.kernel"] == (True, False)
    assert groups["stem.layers.0.kernel"] == groups["fc.kernel"] == (True, False)
    assert groups["stage2.dyn.router.fc1.kernel"] == (False, True)
    assert groups["stage2.dyn.router.fc2.kernel"] == (False, True)
    spared = {name for name, group in groups.items() if group == (False, False)}
    assert spared == {name for name in groups if name.endswith(("bias", "scale"))}


def test_decay_shrinks_each_group_by_its_own_rate():
    config = Config(
        learning_rate=0.5, warmup_steps=0, weight_decay=0.1, router_weight_decay=0.4
    )
    model = DynamicNet(1, num_experts=2, rngs=nnx.Rngs(0))
    before = jax.tree.map(as_array, nnx.state(model, nnx.Param))
    gradients = jax.tree.map(np.zeros_like, nnx.state(model, nnx.Param))
    make_optimizer(model, config).update(model, gradients)
    after = nnx.state(model, nnx.Param)
    for kept, part in [
        (1 - 0.5 * 0.1, lambda state: state["stage1"]["dyn"]["kernel"]),
        (
            1 - 0.5 * 0.4,
            lambda state: state["stage1"]["dyn"]["router"]["fc1"]["kernel"],
        ),
        (1, lambda state: state["fc"]["bias"]),
        (1, lambda state: state["stage1"]["bn"]["scale"]),
    ]:
        np.testing.assert_allclose(
            part(after)[...],
            kept * part(before)[...],
            rtol=TOLERANCES["float32"].relative,
        )


def test_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    config = Config(steps=20, warmup_steps=4, learning_rate=0.5)
    rates = np.array([*map(learning_rate_schedule(config), range(21))])
    assert rates[0] > 0
    assert np.argmax(rates) == 4
    assert rates[4] == 0.5
    assert rates[-1] == 0


def test_temperature_ends_where_it_is_told():
    config = Config(temperature_start=8.0, temperature_end=2.0, temperature_steps=4)
    temperatures = [*map(temperature_schedule(config), range(6))]
    assert temperatures == [8.0, 6.5, 5.0, 3.5, 2.0, 2.0]
