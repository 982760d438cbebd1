"""The training program: reproducible, honest in its files, clear in its refusals."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dynconv_jax import DynamicNet
from dynconv_jax.weights import load_weights
from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.clothes import write_clothes
from parity_tests.tools.on_devices import with_devices
from parity_tests.tools.small_runs import (
    NARROW,
    SMALL,
    contents,
    read_metrics,
    read_summary,
    run,
)
from train.__main__ import main
from train.data.batches import batch_indices
from train.flags.config import Config, parse
from train.learning.step import params_sha256
from train.showing.figures import draw_routing
from train.storage.run_files import (
    CHECKPOINTS,
    EMA_WEIGHTS,
    FILES,
    FOLDERS,
    LOCK,
    RUN_ID,
    read_identity,
)

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = pytest.mark.usefixtures("compilation_cache")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compilation_cache) -> Path:
    """The directory of a short run with seed 0."""
    return run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, compilation_cache) -> Path:
    """The directory of the same run with averages."""
    return run(tmp_path_factory.mktemp("runs") / "averaged", "--ema-decay=0.9")


# Reproducibility


def test_same_seed_gives_same_parameters(finished, tmp_path):
    again = run(tmp_path / "again")
    assert (
        read_summary(again)["params_sha256"] == read_summary(finished)["params_sha256"]
    )


@pytest.mark.slow
def test_another_seed_gives_other_parameters(finished, tmp_path):
    other = run(tmp_path / "other", "--seed=1")
    assert (
        read_summary(other)["params_sha256"] != read_summary(finished)["params_sha256"]
    )


@pytest.mark.slow
def test_eight_devices_that_share_parameters_give_the_losses_of_one(tmp_path):
    flags = [*write_clothes(tmp_path), "--conv=static", "--learning-rate=1e-5"]
    one = run(tmp_path / "one", *flags, experts=None)
    subprocess.run(
        [
            *(sys.executable, "-m", "train", *SMALL, *flags),
            *("--fsdp", f"--out={tmp_path / 'eight'}"),
        ],
        cwd=ROOT,
        env=with_devices(8),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    losses = [
        np.array([row.get("loss", row.get("test_loss")) for row in read_metrics(out)])
        for out in (tmp_path / "eight", one)
    ]
    np.testing.assert_allclose(*losses, rtol=TOLERANCES["float32"].relative)


# What a run leaves behind


def test_run_writes_its_files_and_no_others(finished):
    names = {path.name for path in finished.iterdir()} - {LOCK}
    assert names == {*FILES, *FOLDERS} - {EMA_WEIGHTS}


def test_last_step_is_a_checkpoint(finished):
    assert [path.name for path in (finished / CHECKPOINTS).iterdir()] == ["3"]


def test_metrics_have_a_line_for_each_logged_step(finished):
    logged = [row for row in read_metrics(finished) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    for row in logged:
        assert set(row) == {
            "step",
            "loss",
            "accuracy",
            "gradient_norm",
            "learning_rate",
            "load_balance",
            "temperature",
            "images_per_second",
        }


def test_last_step_is_evaluated(finished):
    *_, last = read_metrics(finished)
    by_router = {"entropy", "usage", "shares", "dead_experts"}
    assert set(last) == {"step", "test_loss", "test_accuracy"} | by_router
    assert last["step"] == 3
    for name in by_router:
        assert last[name].keys() == last["usage"].keys()


@pytest.mark.slow
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
        "stopped_early",
        "images_per_second",
        "compile_seconds",
        "wall_seconds",
        "best_step",
        "best_test_accuracy",
        "parameters",
        "multiply_adds",
        "static_parameters",
        "static_multiply_adds",
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
    flags = {field.name for field in dataclasses.fields(Config)}
    assert set(config) == flags | {RUN_ID}
    assert config["num_experts"] == 2
    assert config["temperature_steps"] == 1


def test_weights_load_back(finished):
    model = DynamicNet(1, num_experts=2, width_mult=0.25, rngs=nnx.Rngs(7))
    load_weights(model, finished / "model.safetensors")
    assert params_sha256(model) == read_summary(finished)["params_sha256"]


@pytest.mark.slow
def test_run_of_epochs_is_the_run_of_their_steps(tmp_path, capsys):
    # Of the 1437 images a batch of 718 is drawn twice an epoch.
    shared = ["--batch-size=718", "--conv=static", NARROW]
    for length in ("--epochs=1", "--steps=2"):
        assert main([*shared, length, f"--out={tmp_path / length}"]) == 0
    epochs, steps = (
        read_summary(tmp_path / each) for each in ("--epochs=1", "--steps=2")
    )
    assert epochs["steps"] == 2
    assert epochs["params_sha256"] == steps["params_sha256"]
    capsys.readouterr()
    assert main([*shared, "--epochs=1", f"--out={tmp_path / '--epochs=1'}"]) == 0
    assert "is finished, with test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_run_with_averages_evaluates_and_saves_them(averaged):
    *_, last = read_metrics(averaged)
    summary = read_summary(averaged)
    assert last["ema_test_loss"] == summary["ema_test_loss"] != summary["test_loss"]
    assert summary["best_test_accuracy"] == summary["ema_test_accuracy"]
    trained, average = (
        DynamicNet(1, num_experts=2, width_mult=0.25, rngs=nnx.Rngs(7)) for _ in "ab"
    )
    load_weights(trained, averaged / "model.safetensors")
    load_weights(average, averaged / EMA_WEIGHTS)
    assert params_sha256(trained) != params_sha256(average)


@pytest.mark.slow
def test_static_model_has_no_routing_to_draw(tmp_path):
    out = run(tmp_path / "run", "--conv=static", "--eval-every=3", experts=None)
    assert not (out / "routing.png").exists()
    assert (out / "report.html").exists()


def test_routing_is_drawn_as_png(finished):
    assert (finished / "routing.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.slow
@pytest.mark.parametrize(("routers", "experts"), [(1, 1), (6, 12)])
def test_routing_is_drawn_for_any_number_of_routers(routers, experts):
    table = np.full((10, experts), 1 / experts)
    picture = draw_routing({f"layer{index}": table for index in range(routers)})
    assert picture.startswith(PNG_SIGNATURE)


@pytest.mark.slow
def test_run_without_out_gets_a_fresh_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(SMALL) == 0
    assert len(list((tmp_path / "runs").glob("digits-*"))) == 2


def test_run_with_validation_is_evaluated_on_it_and_tested_once(tmp_path, capsys):
    out = run(tmp_path / "run", "--val-split=0.1", "--eval-every=2", "--ema-decay=0.9")
    rows, summary = read_metrics(out), read_summary(out)
    evaluated = [row for row in rows if "val_accuracy" in row]
    assert [row["step"] for row in evaluated] == [2, 3]
    assert not [row for row in rows if "test_accuracy" in row or "test_loss" in row]
    for name in ("val_loss", "val_accuracy", "ema_val_accuracy"):
        assert summary[name] == evaluated[-1][name]
    best = max(row["ema_val_accuracy"] for row in evaluated)
    assert summary["best_val_accuracy"] == best
    assert "best_test_accuracy" not in summary
    domain = read_identity(out)
    counts = [domain[f"{part}_images"] for part in ("train", "val", "test")]
    assert counts == [1293, 144, 360]
    capsys.readouterr()
    for part, images in (("test", 360), ("val", 144)):
        assert main(["evaluate", str(out), "--json", f"--part={part}"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["images"] == images
        assert found[f"{part}_accuracy"] == summary[f"{part}_accuracy"]


# Directories that hold something


def test_finished_run_says_so_and_is_untouched(finished, capsys):
    before = contents(finished)
    run(finished)
    assert f"the run in {finished} is finished" in capsys.readouterr().out
    assert contents(finished) == before


def test_finished_run_with_other_flags_is_refused_and_untouched(finished, capsys):
    before = contents(finished)
    assert main([*SMALL, "--num-experts=3", f"--out={finished}"]) == 2
    message = capsys.readouterr().err
    assert "--num-experts 2 -> 3" in message
    assert "--overwrite" in message
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
        (["surplus"], ["'surplus' is no command", "--help"]),
        (["evalute"], ["'evalute' is no command", "did you mean evaluate?"]),
        (["--beta1=0.8", "--optimizer=sgd"], ["--beta1 (=0.8)", "--optimizer sgd"]),
        (["--nesterov"], ["--nesterov (=True)", "--optimizer adamw"]),
        (["--decay-factor=0.5"], ["--decay-factor (=0.5)", "--schedule cosine"]),
        (["--steps=many"], ["--steps (=many)", "whole number"]),
        (["--top-k", "x"], ["--top-k (=x)", "whole number"]),
        (["--learning-rate", "1.0.0"], ["--learning-rate (=1.0.0)", "number"]),
        (["--steps"], ["--steps needs a value"]),
        (["--num-experts=9", "--top-k=8", "--seed=x"], ["--seed (=x)"]),
        (["--preset=moons"], ["--preset (=moons)", "digits"]),
        (["--steps=0"], ["--steps (=0)", "at least 1"]),
        (["--steps=3", "--epochs=1"], ["--epochs (=1)", "--steps (=3)"]),
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
        (["--router-z-loss=-1"], ["--router-z-loss (=-1.0)", "at least 0"]),
        (["--router-noise=-1"], ["--router-noise (=-1.0)", "at least 0"]),
        (["--router-dropout=1"], ["--router-dropout (=1.0)", "less than 1"]),
        (["--temperature-start=0"], ["--temperature-start (=0.0)", "positive"]),
        (["--temperature-end=-2"], ["--temperature-end (=-2.0)", "positive"]),
        (["--temperature-steps=0"], ["--temperature-steps (=0)", "at least 1"]),
        (["--top-k=5", "--num-experts=4"], ["--top-k (=5)", "--num-experts (=4)"]),
        (["--top-k=0"], ["--top-k (=0)", "at least 1"]),
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


def test_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    flags = ["--learning-rate=1e30", "--warmup-steps=0", "--checkpoint-every=1"]
    assert main([*SMALL, *flags, f"--out={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "train: error: the loss is nan at step 2; the last good checkpoint is that of "
        "step 1; "
    )
    assert message.count("\n") == 1
    assert not (tmp_path / "summary.json").exists()
    images = batch_indices(1437, 16, seed=0, step=1)
    assert message.endswith(f"batch are {', '.join(map(str, images))}\n")


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
