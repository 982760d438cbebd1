"""Flags of other programs, and slips, are answered by ours."""

import re
from pathlib import Path

import pytest

from train.__main__ import main
from train.commands.compare import CompareFlags
from train.commands.evaluate import EvaluateFlags
from train.commands.predict import PredictFlags
from train.commands.study.flags import StudyFlags
from train.errors import TrainError
from train.flags.config import Config, parse, parse_flags
from train.flags.foreign import FOREIGN

FLAGS = {f"--{name.replace('_', '-')}" for name in Config.__dataclass_fields__}
COMMANDS = [CompareFlags, EvaluateFlags, PredictFlags, StudyFlags]


def answer_to(*argv: str, kind: type = Config) -> str:
    with pytest.raises(TrainError) as caught:
        parse_flags(argv, kind, "python -m train")
    message = str(caught.value)
    assert "\n" not in message
    return message


# The table


@pytest.mark.parametrize("name", FOREIGN)
def test_every_flag_that_the_table_names_is_one_of_ours(name):
    flag, remark = FOREIGN[name]
    named = {flag, *re.findall(r"(?<!\w)--[a-z][a-z0-9-]*", remark)} - {""}
    assert named <= FLAGS
    assert flag or remark


def test_no_name_of_the_table_is_one_of_ours():
    assert not FLAGS & {*FOREIGN}


@pytest.mark.parametrize("name", FOREIGN)
def test_every_name_of_the_table_is_answered_by_it(name):
    flag, remark = FOREIGN[name]
    message = answer_to(name, "1")
    assert message.startswith(f"'{name}' is no flag of this program; ")
    assert (f"did you mean {flag}?" if flag else remark) in message


# What users of timm, torchvision and others type


@pytest.mark.parametrize(
    ("typed", "flag"),
    [
        ("--lr", "--learning-rate"),
        ("--wd", "--weight-decay"),
        ("--num-epochs", "--epochs"),
        ("--opt", "--optimizer"),
        ("--sched", "--schedule"),
        ("--lr-scheduler", "--schedule"),
        ("--warmup-epochs", "--warmup-steps"),
        ("--min-lr", "--final-learning-rate"),
        ("--smoothing", "--label-smoothing"),
        ("--mixup-alpha", "--mixup"),
        ("--amp", "--dtype"),
        ("--model-ema", "--ema-decay"),
        ("--model-ema-decay", "--ema-decay"),
        ("--pretrained", "--init-from"),
        ("--initial-checkpoint", "--init-from"),
        ("--finetune", "--init-from"),
        ("--reset-head", "--new-head"),
        ("--freeze-layers", "--freeze"),
        ("--head-lr", "--head-learning-rate"),
        ("--output", "--out"),
        ("--output-dir", "--out"),
        ("--experiment", "--out"),
        ("-j", "--workers"),
        ("--num-workers", "--workers"),
        ("--data-dir", "--data"),
        ("--data-path", "--data"),
        ("--dataset", "--preset"),
        ("-b", "--batch-size"),
        ("--img-size", "--image-size"),
        ("--clip-grad", "--clip-norm"),
        ("--clip-grad-norm", "--clip-norm"),
        ("--reprob", "--erasing"),
        ("--drop-path-rate", "--drop-path"),
        ("--random-erase", "--erasing"),
        ("--hflip", "--flip"),
        ("--aa", "--randaugment"),
        ("--checkpoint-hist", "--keep-checkpoints"),
        ("--log-interval", "--log-every"),
        ("--print-freq", "--log-every"),
        ("--eval-interval", "--eval-every"),
        ("--grad-accum-steps", "--accumulate"),
        ("--local_rank", "--process-id"),
        ("--world-size", "--num-processes"),
    ],
)
def test_flag_of_another_program_is_answered_by_its_meaning(typed, flag):
    assert f"did you mean {flag}?" in answer_to(typed, "1")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--resume", "the same command with the same --out goes on"),
        ("--num-classes", "the classes are those of the images"),
        ("--drop", "--router-dropout"),
        ("--device", "JAX takes the fastest device"),
        ("--sync-bn", "batch norms see the batch of all devices"),
        ("--test-only", "`evaluate RUN`"),
    ],
)
def test_flag_that_has_no_counterpart_is_answered_by_what_to_do(typed, words):
    message = answer_to(typed, "1")
    assert words in message
    assert "did you mean" not in message


# How they are written


@pytest.mark.parametrize(
    "typed",
    ["--lr", "--lr=0.1", "-lr", "--LR", "--learning_rat", "--learningrate", "--lr=-1"],
)
def test_other_ways_to_write_a_flag_are_answered_alike(typed):
    message = answer_to(typed)
    assert message.startswith(f"'{typed}' is no flag")
    assert "did you mean --learning-rate?" in message


@pytest.mark.parametrize("typed", ["-j4", "-j=4", "-j", "--num_workers", "-jobs"])
def test_short_flag_may_have_its_value_at_its_end(typed):
    answer = "--workers" if typed != "-jobs" else "--help lists the flags"
    assert answer in answer_to(typed)


def test_slip_in_a_name_of_the_table_is_answered_by_it():
    assert "did you mean --warmup-steps?" in answer_to("--warm-up-epoch=5")


@pytest.mark.parametrize("typed", ["--foo", "--xyz-abc=3", "-q", "--verbose"])
def test_flag_that_is_like_no_other_is_answered_by_no_guess(typed):
    message = answer_to(typed)
    assert message == f"'{typed}' is no flag of this program; --help lists the flags"


@pytest.mark.parametrize("typed", ["--batch_size=32", "--Batch_Size=32"])
def test_underscores_of_our_own_flags_are_read(typed):
    if typed.islower():
        assert parse([typed]).batch_size == 32
    else:
        assert "did you mean --batch-size?" in answer_to(typed)


def test_negative_value_is_no_flag():
    message = answer_to("--weight-decay", "-0.5")
    assert message == "--weight-decay (=-0.5) must be finite and at least 0"


def test_unknown_flag_is_told_before_values_are_read():
    assert "did you mean --learning-rate?" in answer_to("--steps=many", "--lr=0.1")


def test_folder_that_stands_alone_is_answered_by_where_to_give_it(tmp_path):
    message = answer_to(str(tmp_path), "--model=resnet18")
    assert f"did you mean --preset folder --data {tmp_path}?" in message


# In all commands


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("typed", ["--lr", "--dataset", "--model-ema", "-b"])
def test_other_commands_say_that_a_flag_is_of_training(kind, typed):
    flag, _ = FOREIGN[typed]
    message = answer_to(typed, "1", kind=kind)
    assert message.startswith(f"'{typed}' is no flag of this command; ")
    has_it = flag in {f"--{n.replace('_', '-')}" for n in kind.__dataclass_fields__}
    assert (f"did you mean {flag}?" if has_it else f"training has {flag}") in message


@pytest.mark.parametrize(
    ("kind", "typed", "flag"),
    [
        (CompareFlags, "--output", "--out"),
        (EvaluateFlags, "--data-dir", "--data"),
        (EvaluateFlags, "--weigths", "--weights"),
        (PredictFlags, "--max-pixels", "--max-image-pixels"),
        (PredictFlags, "--jsn", "--json"),
        (StudyFlags, "--max-steps", "--steps"),
        (StudyFlags, "--lr", "--learning-rate"),
        (StudyFlags, "--seed", "--seeds"),
    ],
)
def test_other_commands_answer_by_their_own_flags(kind, typed, flag):
    assert f"did you mean {flag}?" in answer_to(typed, "1", kind=kind)


@pytest.mark.parametrize("kind", COMMANDS)
def test_other_commands_say_of_what_they_speak(kind):
    assert "; in training, none is needed" in answer_to("--resume", kind=kind)


@pytest.mark.parametrize("kind", [EvaluateFlags, PredictFlags])
def test_unknown_flag_is_told_before_what_is_missing(kind):
    assert "'--lr' is no flag" in answer_to("--lr", "0.1", "run", kind=kind)


@pytest.mark.parametrize(
    "argv",
    [["--lr=1"], *([name, "--lr=1"] for name in ("compare", "predict", "evaluate"))],
)
def test_program_says_it_in_one_line(argv, capsys):
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("train: error: '--lr=1' is no flag of this ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("kind", [Config, EvaluateFlags, PredictFlags])
def test_value_of_a_choice_that_may_be_left_out_is_named(kind):
    message = answer_to("--on-bad-image=maybe", kind=kind)
    assert message == "--on-bad-image (=maybe) must be one of: stop, skip"


@pytest.mark.parametrize("value", [0, -1])
def test_limit_of_pixels_must_be_at_least_1(value):
    with pytest.raises(TrainError, match=r"--max-image-pixels .* be at least 1"):
        Config(preset="folder", data=Path("data"), max_image_pixels=value)
