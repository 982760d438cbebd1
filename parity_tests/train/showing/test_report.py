"""The report page: one file that has all it shows, whatever the run was."""

import dataclasses
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from parity_tests.tools.runs import SUMMARY, make_dataset, make_evaluation, write_run
from train.errors import TrainError
from train.machines.description import describe_code
from train.showing.report import sections, write_report
from train.showing.report.charts import MOST_POINTS, Line, chart
from train.showing.report.exported import show_export
from train.showing.report.markup import duration, number
from train.storage.finished import read_run

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page, read: its text, what it refers to, and whether its elements close."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [
            value for name, value in attrs if name in ("src", "href") and value
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path, dataset, evaluation, summary=SUMMARY, **flags) -> Page:
    write_run(path, **flags)
    write_report(path, dataset, evaluation, summary)
    return Page((path / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    dataset = make_dataset()
    evaluation = make_evaluation(dataset, wrong=(3, 7))
    path = tmp_path_factory.mktemp("runs") / "run"
    return read_page(path, dataset, evaluation, learning_rate=0.01)


def test_page_needs_nothing_but_itself(page):
    assert page.references
    assert all(each.startswith("data:image/png;base64,") for each in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_style_of_the_page_loads_nothing(tmp_path):
    dataset = make_dataset()
    write_run(tmp_path / "run")
    write_report(tmp_path / "run", dataset, make_evaluation(dataset), SUMMARY)
    source = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "url(" not in source and "@import" not in source and "http" not in source


def test_elements_of_the_page_close(page):
    assert page.open == []


def test_names_of_classes_are_text_not_markup(page):
    assert "class <3>" in page.text


def test_page_tells_the_figures_of_the_run(page):
    for figure in ("83.33 %", "2 of 12 images wrong", "1 min 15 s", "4.00 x"):
        assert figure in page.text


def test_page_draws_each_curve(page):
    assert page.tags.count("polyline") == 2 + 2 + 4 + 1  # one router has a history


def test_worst_mistakes_come_first(page):
    assert page.text.index("sure · #7") < page.text.index("sure · #3")


def test_each_class_has_its_accuracy_the_lowest_first(page):
    listed = page.text.partition("Accuracy of each class")[2]
    # Both images that were taken for others are of one of the four classes.
    assert listed.count("1 of 3") == 1 and listed.count("3 of 3") == 3
    assert listed.index("33.3 %") < listed.index("100.0 %")


def test_page_says_on_what_the_run_was(page):
    shown = page.text.partition("Environment")[2]
    assert jax.__version__ in shown and "cpu" in shown
    assert (describe_code() or "not a checkout") in shown


def test_changed_flags_come_before_the_others(page):
    changed, others = page.text.split("flags as they are by default")
    assert "--learning-rate" in changed and "--learning-rate" not in others
    assert "--weight-decay" in others and "--warmup-steps" in others
    assert "python -m train --steps 40 --learning-rate 0.01" in changed


def test_static_model_has_no_empty_figures(tmp_path):
    dataset = make_dataset()
    evaluation = make_evaluation(dataset, routers=0)
    page = read_page(tmp_path / "run", dataset, evaluation, conv="static")
    assert "there is no routing to show" in page.text
    assert "Entropy" not in page.text and "Temperature" not in page.text


def test_page_of_many_classes_and_routers_stays_small(tmp_path):
    dataset = make_dataset(classes=100, images=300)
    evaluation = make_evaluation(dataset, routers=30, wrong=tuple(range(60)))
    page = read_page(tmp_path / "run", dataset, evaluation)
    assert page.tags.count("img") == 30 + 1 + 24
    assert (tmp_path / "run" / "report.html").stat().st_size < 200_000


def test_page_says_in_a_sentence_what_the_routers_do(tmp_path):
    dataset = make_dataset()
    evaluation = make_evaluation(dataset)
    evaluation.dead["stage1.dyn.router"] = (1, 3)
    page = read_page(tmp_path / "run", dataset, evaluation)
    assert "two of four experts of stage1.dyn are dead: 1, 3" in page.text
    assert "the other router uses its experts and tells images apart" in page.text


def test_page_draws_the_losses_on_routers(tmp_path):
    dataset = make_dataset()
    rows = {"load_balance": 1.25, "router_z_loss": 0.5}
    write_run(tmp_path / "run", metrics=rows)
    write_report(tmp_path / "run", dataset, make_evaluation(dataset), SUMMARY)
    page = Page((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert "Imbalance of the experts" in page.text
    assert "z-loss of the routers" in page.text


def test_run_without_mistakes_says_so(tmp_path):
    dataset = make_dataset()
    evaluation = make_evaluation(dataset, wrong=())
    assert "It made none" in read_page(tmp_path / "run", dataset, evaluation).text


def test_page_shows_averaged_weights(tmp_path):
    dataset = make_dataset()
    summary = SUMMARY | {"ema_test_accuracy": 0.8125, "ema_test_loss": 0.4}
    page = read_page(tmp_path / "run", dataset, make_evaluation(dataset), summary)
    assert "81.25 %" in page.text


def test_page_of_a_run_without_test_images_is_of_validation(tmp_path):
    whole = make_dataset()
    none = make_dataset(images=0).test
    dataset = dataclasses.replace(whole, test=none, val=whole.test)
    evaluation = dataclasses.replace(make_evaluation(whole), part="val")
    renamed = {name.replace("test", "val"): value for name, value in SUMMARY.items()}
    page = read_page(tmp_path / "run", dataset, evaluation, renamed)
    assert "validation accuracy" in page.text
    assert "12 training and 12 validation images" in page.text
    assert "validation images, of those it got wrong" in page.text
    assert "test accuracy" not in page.text


def test_curve_of_validation_is_named_so(tmp_path):
    write_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("test_", "val_"))
    shown = sections.curves(read_run(tmp_path))
    assert "validation" in shown and "test" not in shown


def read_page_of_two(path, evaluation, dataset, **figures) -> Page:
    """Reads the page of a run whose static twin was trained too."""
    write_run(path, twin=True)
    write_run(path / "twin", conv="static")
    write_report(path, dataset, evaluation, SUMMARY | figures)
    return Page((path / "report.html").read_text("utf-8"))


def test_page_shows_the_twin_beside_the_model(tmp_path):
    dataset = make_dataset()
    page = read_page_of_two(
        *(tmp_path / "run", make_evaluation(dataset), dataset),
        **dict(test_accuracy=11 / 12, twin_test_accuracy=0.75),
        twin_images_per_second=2469.0,
    )
    assert "1 of 12 images wrong; its static twin: 75.00 %" in page.text
    told = page.text.partition("Speed and cost")[2]
    assert "91.67 %75.00 %+2 of 12 images" in told
    assert "1,2342,4690.50 x" in told
    assert "its own page is twin/report.html" in told
    # Beside the curves of a run without a twin: its loss and its accuracy.
    assert page.tags.count("polyline") == 2 + 2 + 4 + 1 + 2


def test_page_of_averaged_weights_shows_those_of_the_twin(tmp_path):
    dataset = make_dataset()
    page = read_page_of_two(
        *(tmp_path / "run", make_evaluation(dataset), dataset),
        **dict(ema_test_accuracy=0.75, twin_ema_test_accuracy=0.8333),
        **dict(twin_test_accuracy=0.5, twin_images_per_second=9.0),
    )
    assert "75.00 %83.33 %-1 of 12 images" in page.text


def test_long_curves_are_thinned_and_skip_what_is_not_finite():
    steps = np.arange(1, 10_001)
    values = np.where(steps == 5, np.nan, 1 / steps)
    source = chart("Loss", [Line("loss", steps.tolist(), values.tolist(), "red")])
    points = source.split('points="')[1].split('"')[0].split()
    assert len(points) == MOST_POINTS
    assert "nan" not in source


def test_curve_of_one_point_is_a_dot():
    assert 'class="curve dot"' in chart("Loss", [Line("loss", [5], [1.0], "red")])


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.0005, "0.0005"), (1500, "1,500"), (2.5e9, "2.5G")]
)
def test_numbers_are_short(value, words):
    assert number(value) == words


def test_times_are_told_as_people_tell_them():
    assert [duration(each) for each in (0.5, 59.99, 3600)] == [
        *("0.5 s", "60.0 s", "1 h 0 min"),
    ]


def test_flags_of_a_run_are_read_back(tmp_path):
    config = write_run(tmp_path / "run", conv_options=("a=1",), ema_decay=0.5)
    read = read_run(tmp_path / "run").config
    assert read.to_json() == config.to_json()
    assert read.out == tmp_path / "run"


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(TrainError, match="holds no run"):
        read_run(tmp_path)


# What was exported

EXPORT = {
    "pictures": 21,
    "files": {
        "model.onnx": {
            "bytes": 1_730_000,
            "relative_difference": 2e-7,
            "same_class": 1.0,
        }
    },
    "quantized": {
        "model.int8.onnx": {
            "bytes": 420_000,
            "test_accuracy_of_int8": 0.9877,
            "test_accuracy_of_onnx": 0.9899,
        }
    },
    "accuracy": {
        "weights": "best",
        "of": "the network",
        "test_accuracy": 0.9889,
        "images": 360,
    },
}


def test_latest_export_is_on_the_page_of_its_run(tmp_path):
    dataset = make_dataset()
    before = read_page(tmp_path, dataset, make_evaluation(dataset))
    show_export(tmp_path, tmp_path / "earlier", EXPORT)
    show_export(tmp_path, tmp_path / "a & b", EXPORT)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.open == []
    assert page.tags.count("section") == before.tags.count("section") + 1
    shown, footer, _ = page.text.partition("params_sha256")
    assert footer and shown.startswith(before.text.partition(footer)[0])
    added = shown.removeprefix(before.text.partition(footer)[0])
    for told in ("a & b", "model.onnx", "1.73", "2e-07", "100.0 %", "98.89 %", "best"):
        assert told in added
    for told in ("model.int8.onnx", "0.42", "98.77 %, of model.onnx 98.99 %"):
        assert told in added


def test_export_of_a_run_without_a_report_writes_none(tmp_path):
    show_export(tmp_path, tmp_path / "export", EXPORT)
    assert not list(tmp_path.iterdir())
