"""`predict` tells the classes and the routing of image files."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dynconv_jax.diagnostics import capture_attention
from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.runs import write_trained
from train.commands.predict import main
from train.data import folder, presets
from train.errors import TrainError
from train.learning.augment import normalize

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    dataset, model = write_trained(path, num_experts=2, mean=(0.25,))
    for index in range(2):
        picture = Image.fromarray(dataset.test.image(index).squeeze(-1))
        picture.save(path.parent / f"{index}.png")
    return path, dataset, model


@pytest.fixture(scope="module")
def expected(trained):
    _, dataset, model = trained
    evaluating = nnx.view(
        model, use_running_average=True, deterministic=True, raise_if_not_found=False
    )
    images = normalize(dataset.test.images[:2], dataset.mean, dataset.std)
    graphdef, state = nnx.split(evaluating)
    logits, attention = jax.jit(
        lambda state: capture_attention(nnx.merge(graphdef, state), images)
    )(state)
    return np.asarray(jax.nn.softmax(logits)), attention


def test_predictions_are_those_of_the_model(trained, expected, capsys):
    path, _, _ = trained
    probabilities, attention = expected
    main([str(path), *(str(path.parent / f"{i}.png") for i in range(2)), "--json"])
    predictions = json.loads(capsys.readouterr().out)
    tolerance = TOLERANCES["float32"].relative
    for row, prediction in enumerate(predictions):
        found = [each["probability"] for each in prediction["classes"]]
        names = [each["class"] for each in prediction["classes"]]
        order = np.argsort(-probabilities[row])[:5]
        assert names == [str(number) for number in order]
        np.testing.assert_allclose(found, probabilities[row][order], rtol=tolerance)
        for router, shares in prediction["attention"].items():
            np.testing.assert_allclose(shares, attention[router][row], rtol=tolerance)


@pytest.mark.parametrize("is_given", [False, True], ids=["of the run", "given"])
def test_middle_of_a_picture_is_seen_where_that_is_what_is_kept(
    is_given, trained, expected, tmp_path, capsys
):
    path = shutil.copytree(trained[0], tmp_path / "run")
    told = json.loads((path / "domain.json").read_text())
    share = 0.9 if is_given else 0.5
    (path / "domain.json").write_text(json.dumps(told | {"crop_pct": share}))
    pixels = np.pad(trained[1].test.image(0)[..., 0], 4, constant_values=255)
    # Of twice the size of the middle: cut to it, nothing is scaled.
    Image.fromarray(pixels).save(tmp_path / "0.png")
    given = ["--crop-pct=0.5"] if is_given else []
    main([str(path), str(tmp_path / "0.png"), *given, "--top=1", "--json"])
    (prediction,) = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(
        prediction["classes"][0]["probability"],
        expected[0][0].max(),
        rtol=TOLERANCES["float32"].relative,
    )


def test_the_data_need_not_be_there(trained, monkeypatch, capsys):
    path, _, _ = trained
    monkeypatch.delattr(presets.digits, "load")
    main([str(path), str(path.parent / "0.png"), "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_unreadable_image_is_named(trained, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(TrainError, match=r"torn\.png cannot be read"):
        main([str(trained[0]), str(tmp_path / "torn.png")])


# Folders, and images that cannot be read


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A class of pictures of many kinds, in the folders of training and test."""
    for split in ("train", "val"):
        root = tmp_path / split / "one"
        (root / "deep" / "er").mkdir(parents=True)
        grey = np.linspace(0, 2**16 - 1, 48, dtype=np.uint16).reshape(6, 8)
        Image.fromarray(grey).save(root / "deep.png")
        colours = Image.new("RGB", (3, 2), (9, 99, 200))
        colours.save(root / "deep" / "a.webp")
        colours.save(root / "deep" / "er" / "B.BMP")
        colours.save(root / "c.jfif", "JPEG")
        (root / "gone.jpg").symlink_to("nowhere")
        (root / "notes.txt").write_text("mine")
    return tmp_path


def test_folder_is_read_as_training_reads_it(trained, pictures, capsys):
    source = folder.load(pictures).train
    assert isinstance(source, folder.FolderSource)
    told = capsys.readouterr().err.splitlines()[0]
    _, unreadable = source.gather(np.arange(len(source)))
    assert [source.paths[row].name for row in unreadable] == ["gone.jpg"]
    root = pictures / "train" / "one"
    main([str(trained[0]), str(root), "--on-bad-image=skip", "--json"])
    said = capsys.readouterr()
    expected = [each for each in source.paths if each.name != "gone.jpg"]
    assert len(expected) == 4
    assert [row["image"] for row in json.loads(said.out)] == [*map(str, expected)]
    left_out, skipped = said.err.splitlines()
    assert left_out.endswith(": notes.txt")
    assert f"{root}: 1 file(s) left out, " in left_out
    assert told.endswith(": one/notes.txt")
    (why,) = unreadable.values()
    assert skipped.endswith(f"{why}; it is skipped")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "gone.jpg cannot be read as an image: it is a link to nowhere, where"),
        (["--max-image-pixels=47"], "48 pixels, more than --max-image-pixels (=47)"),
    ],
)
def test_image_that_cannot_be_read_stops_it(flags, words, trained, pictures, capsys):
    with pytest.raises(TrainError) as caught:
        main([str(trained[0]), str(pictures), *flags])
    assert words in str(caught.value)
    assert "mend it, or pass --on-bad-image skip" in str(caught.value)


def test_what_the_run_was_told_holds_where_nothing_else_is(
    trained, pictures, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    flags = json.loads((run / "config.json").read_text())
    flags |= {"on_bad_image": "skip", "max_image_pixels": 47}
    (run / "config.json").write_text(json.dumps(flags))
    main([str(run), str(pictures / "val"), "--json"])
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3
    assert "48 pixels, more than --max-image-pixels (=47)" in said.err


@pytest.mark.parametrize("content", ["nothing", "no picture", "no good one"])
def test_folder_without_pictures_is_refused(content, trained, tmp_path):
    (tmp_path / "images").mkdir()
    if content != "nothing":
        name = "a.png" if content == "no good one" else "a.txt"
        (tmp_path / "images" / name).write_text("text")
    refused = "none of the images can be" if content == "no good one" else "has no imag"
    with pytest.raises(TrainError, match=refused):
        main([str(trained[0]), str(tmp_path / "images"), "--on-bad-image=skip"])


def test_name_of_an_image_does_not_steer_the_terminal(trained, tmp_path, capsys):
    path = tmp_path / "a\x1b[2J.png"
    Image.new("L", (8, 8)).save(path)
    main([str(trained[0]), str(path)])
    assert capsys.readouterr().out.startswith(rf"{tmp_path}/a\x1b[2J.png")


# Many images, and files of what was seen in them


@pytest.fixture(scope="module")
def many(trained) -> Path:
    """A folder of five pictures, which is no multiple of a batch."""
    path, dataset, _ = trained
    folder = path.parent / "many"
    folder.mkdir()
    for index in range(5):
        picture = Image.fromarray(dataset.test.image(index).squeeze(-1))
        picture.save(folder / f"{index}, of five.png")
    return folder


def predictions_of(out: Path, *argv: str | Path) -> list[dict]:
    main([*map(str, argv), f"--out={out}"])
    return [*map(json.loads, out.read_text().splitlines())]


def test_images_are_seen_alike_in_batches_of_any_size(trained, many, tmp_path):
    out = tmp_path / "seen.jsonl"
    alone, together = (
        predictions_of(out, trained[0], many, f"--batch-size={size}") for size in (1, 3)
    )
    names = [str(path) for path in sorted(many.iterdir())]
    assert [row["image"] for row in together] == names
    for one, other in zip(alone, together, strict=True):
        assert [each["class"] for each in one["classes"]] == [
            each["class"] for each in other["classes"]
        ]
        np.testing.assert_allclose(
            *([each["probability"] for each in row["classes"]] for row in (one, other)),
            rtol=TOLERANCES["float32"].relative,
        )
        for router, shares in one["attention"].items():
            np.testing.assert_allclose(
                shares,
                other["attention"][router],
                rtol=TOLERANCES["float32"].relative,
            )


def test_batches_and_not_all_images_are_in_memory(trained, many, monkeypatch, capsys):
    sizes = []
    gather = folder.FolderSource.gather

    def gather_and_count(source, indices):
        sizes.append(len(indices))
        return gather(source, indices)

    monkeypatch.setattr(folder.FolderSource, "gather", gather_and_count)
    main([str(trained[0]), str(many), "--batch-size=2"])
    assert sorted(sizes) == [1, 2, 2]


def test_rows_of_a_table_are_those_of_the_lines(trained, many, tmp_path, capsys):
    lines = predictions_of(tmp_path / "seen.jsonl", trained[0], many, "--top=2")
    main([str(trained[0]), str(many), "--top=2", f"--out={tmp_path / 'seen.csv'}"])
    assert f"predictions in {tmp_path / 'seen.csv'}" in capsys.readouterr().out
    with open(tmp_path / "seen.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class", "probability", "class_2", "probability_2"]
    for row, line in zip(rows, lines, strict=True):
        assert row[0] == line["image"]
        assert row[1::2] == [each["class"] for each in line["classes"]]
        assert row[2::2] == [f"{each['probability']:.6g}" for each in line["classes"]]


def test_image_that_is_skipped_has_no_row(trained, many, tmp_path):
    folder = shutil.copytree(many, tmp_path / "some")
    (folder / "1, of five.png").write_bytes(b"")
    skip = "--on-bad-image=skip"
    rows = predictions_of(tmp_path / "seen.jsonl", trained[0], folder, skip)
    assert [Path(row["image"]).name[0] for row in rows] == ["0", "2", "3", "4"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=seen.txt"], "--out .* must end in .csv or .jsonl"),
        (["--out=nowhere/seen.csv"], "--out .* must be a file in a folder that there"),
        (["--out=seen.csv", "--json"], "--json .* be left out with --out"),
        (["--top=0"], "--top .* at least 1"),
        (["--batch-size=0"], "--batch-size .* at least 1"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(flags, words):
    with pytest.raises(TrainError, match=words):
        main(["/no/run", "/no/image.png", *flags])


def test_run_without_images_is_refused(trained):
    with pytest.raises(TrainError, match="RUN IMAGE"):
        main([str(trained[0])])
