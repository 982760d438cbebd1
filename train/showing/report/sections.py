"""The sections of the page, in the order of what one asks first."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.dataset import PARTS, Dataset, Part
from train.flags.checks import flag_of, words_of
from train.learning.evaluation import Evaluation
from train.showing.report import markup
from train.showing.report.charts import Line, chart, palette
from train.showing.report.markup import duration, number, percent, section, table, text
from train.showing.report.matrices import attention_map, confusion_map
from train.showing.routing_words import between_classes, in_words, router_name
from train.storage.finished import Row, Run
from train.storage.run_files import REPORT, TWIN

Summary = Mapping[str, Any]

MOST_MISTAKES = 24
MOST_PAIRS = 12
MOST_OPEN_CLASSES = 20
MOST_OPEN_MAPS = 12  # of more, the page is shorter while they are folded away
PICTURE_SIDE = 128  # larger images are shown smaller
MOST_SHARES = 64  # experts of a router whose usage is drawn


def headline(summary: Summary, evaluation: Evaluation) -> str:
    """Shows the figures by which a run is judged."""
    read = evaluation.predictions >= 0
    wrong = int(read.sum() - np.trace(evaluation.confusion))
    part, chosen_on = evaluation.part, _chosen_on(summary)
    what = PARTS[part]
    note = f"{wrong:,} of {read.sum():,} images wrong"
    if f"twin_{part}_accuracy" in summary:
        twin = percent(summary[f"twin_{part}_accuracy"], 2)
        note += f"; its static twin: {twin}"
    if f"ema_{part}_accuracy" in summary:
        accuracy = percent(summary[f"ema_{part}_accuracy"], 2)
        last = ("averaged weights", accuracy, f"{what} accuracy")
        averaged = "averaged, "
    else:
        averaged = ""
        last = ("compilation", duration(summary["compile_seconds"]), "of the time")
    figures = [
        (f"{what} accuracy", percent(evaluation.accuracy, 2), note),
        (f"{what} loss", number(evaluation.loss), "cross-entropy"),
        (
            f"best {PARTS[chosen_on]} accuracy",
            percent(summary[f"best_{chosen_on}_accuracy"], 2),
            f"{averaged}at step {summary['best_step']:,}",
        ),
        ("parameters", number(summary["parameters"]), "of the model"),
        ("multiply-adds", number(summary["multiply_adds"]), "an image"),
        ("steps", f"{summary['steps']:,}", "of the optimizer"),
        ("speed", f"{number(summary['images_per_second'])} /s", "images, in training"),
        ("time", duration(summary["wall_seconds"]), "in all"),
        last,
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in figures
    )
    return f'<dl class="figures">{cells}</dl>'


def curves(run: Run, twin: Run | None = None) -> str:
    """Shows how the run went, step by step, and beside it how its static twin did."""
    training = run.training
    charts = [
        chart("Loss", _present(_learning(run, twin, "loss")), may_be_logarithmic=True),
        chart("Accuracy", _present(_learning(run, twin, "accuracy"))),
        *(
            chart(title, _present([_line(title, training, name, 0)]), low=0)
            for title, name in (
                ("Learning rate", "learning_rate"),
                ("Temperature of the routers", "temperature"),
                ("Assignment of cells", "assignment"),
                ("Imbalance of the experts (1: even)", "load_balance"),
                ("z-loss of the routers", "router_z_loss"),
                ("Norm of the gradients", "gradient_norm"),
                ("Images per second", "images_per_second"),
            )
        ),
    ]
    return section("How it went", f'<div class="grid2">{"".join(charts)}</div>')


def _chosen_on(values: Summary) -> Part:
    """Returns the part by which the best weights were chosen."""
    return "val" if "best_val_accuracy" in values else "test"


def _learning(run: Run, twin: Run | None, what: str) -> list[Line]:
    """Returns the lines of the loss or the accuracy; a run is evaluated on one part."""
    lines = [_line("training", run.training, what, 0, is_faint=True)]
    for part, name in PARTS.items():
        averaged = f"{name}, averaged weights"
        lines.append(_line(name, run.tests, f"{part}_{what}", 1))
        lines.append(_line(averaged, run.tests, f"ema_{part}_{what}", 2))
        of_twin = twin.tests if twin else []
        lines.append(_line(f"{name}, static twin", of_twin, f"{part}_{what}", 3))
    return lines


def _line(
    name: str, rows: list[Row], key: str, color: int, *, is_faint: bool = False
) -> Line:
    rows = [row for row in rows if row.get(key) is not None]
    steps, values = ([row[each] for row in rows] for each in ("step", key))
    return Line(name, steps, values, palette(color, 4), is_faint)


def _present(lines: list[Line]) -> list[Line]:
    return [line for line in lines if len(line.steps)]


def routing(run: Run, evaluation: Evaluation, dataset: Dataset) -> str:
    """Shows what the routers do, each and by class, and how they came to it."""
    if not evaluation.attention:
        return section(
            "Routing",
            note="No convolution of this model chooses among experts for an image, so "
            "there is no routing to show. (A decomposition is dynamic too, and chooses "
            "nothing.)",
        )
    paths = list(evaluation.attention)
    names = {path: router_name(path) for path in paths}
    verdict = "".join(f"<li>{text(each)}</li>" for each in in_words(evaluation))
    rows = [_router_row(names[path], path, evaluation) for path in paths]
    overview = table(
        ("router", "experts", "entropy", "difference between classes", "usage"),
        rows,
        "plain",
    )
    history = [
        Line(
            names[path],
            [row["step"] for row in run.tests if path in row.get("entropy", {})],
            [
                row["entropy"][path] / _most_entropy(evaluation.attention[path])
                for row in run.tests
                if path in row.get("entropy", {})
            ],
            palette(index, len(paths)),
        )
        for index, path in enumerate(paths)
    ]
    over_time = chart(
        "Entropy of the routers",
        history,
        low=0,
        high=1,
        note="1: all experts alike; 0: one expert an image",
    )
    maps = "".join(
        attention_map(names[path], attention, dataset.class_names)
        for path, attention in evaluation.attention.items()
    )
    scale = (
        '<p class="scale">less than an even share <i></i> more; columns are experts, '
        "rows are classes</p>"
    )
    count = f"{len(paths)} router" + "s" * (len(paths) > 1)
    return section(
        "Routing",
        f'<ul class="verdict">{verdict}</ul>' if verdict else "",
        overview,
        f"<h3>Over time</h3>{over_time}",
        markup.details(
            f"Attention by class: {count}",
            scale,
            f'<div class="maps">{maps}</div>',
            is_open=len(paths) <= MOST_OPEN_MAPS,
        ),
        note=f"What each router does with the {PARTS[evaluation.part]} images, and "
        "what each layer takes from a warehouse of cells, over its kernel's tiles. "
        "Entropy is that of an image's attention, as a share of the largest there is; "
        "usage is the share of images in which each expert weighs most, the largest "
        "first; an expert is dead that has next to nothing, on average and of any "
        "image; the difference between classes is the mean distance (half the sum of "
        "absolute differences) of a class's attention from that of all.",
    )


def _router_row(name: str, path: str, evaluation: Evaluation) -> tuple[str, ...]:
    attention, usage = evaluation.attention[path], evaluation.usage[path]
    entropy = evaluation.entropy[path] / _most_entropy(attention)
    shown = sorted(usage, reverse=True)[:MOST_SHARES]
    shares = "".join(
        f'<i style="flex:{share:.4f};opacity:{max(0.25, 0.85**place):.2f}" '
        f'title="{percent(share)}"></i>'
        for place, share in enumerate(shown)
        if share > 0
    )
    used = int((usage > 0).sum())
    return (
        text(name),
        str(len(usage)),
        _measure(entropy),
        _measure(between_classes(attention)),
        f'<div class="bar" title="{used} of {len(usage)} in use">{shares}</div>',
    )


def _most_entropy(attention: np.ndarray) -> float:
    """Returns the largest entropy that attention (classes, K) can have, in nats."""
    return math.log(max(2, attention.shape[1]))


def _measure(share: float) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="measure"><div class="bar"><i style="width:{width:.1f}%"></i>'
        f"</div>{share:.2f}</div>"
    )


def mistakes(evaluation: Evaluation, dataset: Dataset) -> str:
    """Shows what is mistaken for what, and the images with the largest loss."""
    confusion = evaluation.confusion
    names = [text(name) for name in dataset.class_names]
    off = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:MOST_PAIRS]
    places = zip(*np.unravel_index(order, off.shape), strict=True)
    pairs = [
        (names[row], names[column], f"{off[row, column]:,}")
        for row, column in places
        if off[row, column]
    ]
    most = table(("class", "taken for", "images"), pairs, "plain") if pairs else ""
    matrix = section(
        "Which classes it confuses",
        _beside(confusion_map(confusion, dataset.class_names), most),
        markup.details(
            "Accuracy of each class, the lowest first",
            _classes(confusion, names),
            is_open=len(names) <= MOST_OPEN_CLASSES,
        ),
        note="Rows are classes, columns are predictions; violet is right, orange is "
        "wrong.",
    )
    return matrix + _worst(evaluation, dataset, names)


def _classes(confusion: np.ndarray, names: list[str]) -> str:
    """Shows how many images of each class were right."""
    images, right = confusion.sum(1), np.diag(confusion)
    shares = right / np.maximum(images, 1)
    rows = [
        (
            names[each],
            f"{right[each]:,} of {images[each]:,}",
            percent(shares[each]) if images[each] else "–",
        )
        for each in np.argsort(np.where(images, shares, 2), kind="stable")
    ]
    return table(("class", "right", "accuracy"), rows, "plain")


def _worst(evaluation: Evaluation, dataset: Dataset, names: list[str]) -> str:
    source, what = dataset.part(evaluation.part), PARTS[evaluation.part]
    labels = source.labels
    is_wrong = (evaluation.predictions != labels) & (evaluation.predictions >= 0)
    losses = np.where(is_wrong, evaluation.losses, -np.inf)
    worst = np.argsort(-losses, kind="stable")[: min(MOST_MISTAKES, is_wrong.sum())]
    if not len(worst):
        return section("Its worst mistakes", note=f"It made none on the {what} images.")
    figures = []
    for index in worst:
        true, predicted = names[labels[index]], names[evaluation.predictions[index]]
        image = source.image(int(index))
        sure = percent(float(evaluation.confidence[index]), 0)
        shown = markup.picture(image, f"{what} image {index}", PICTURE_SIDE)
        figures.append(
            f"<figure>{shown}<figcaption><b>{true}</b><br>taken for {predicted}<br>"
            f"<span>{sure} sure · #{index}</span>"
            "</figcaption></figure>"
        )
    return section(
        "Its worst mistakes",
        f'<div class="mistakes">{"".join(figures)}</div>',
        note=f"The {what} images, of those it got wrong, with the largest loss.",
    )


def cost(summary: Summary, evaluation: Evaluation) -> str:
    """Shows what the run cost, and what the model costs beside a static twin.

    Of a twin that was trained too, it shows how well it does.
    """
    rows = [
        _cost_row(name, summary[key], summary[f"static_{key}"])
        for name, key in (
            ("parameters", "parameters"),
            ("multiply-adds an image", "multiply_adds"),
        )
    ]
    note = (
        "The static twin is the same network with a plain convolution in the place of "
        "each dynamic one."
    )
    part = evaluation.part
    if f"twin_{part}_accuracy" in summary:
        speeds = summary["images_per_second"], summary["twin_images_per_second"]
        rows.append(_cost_row("images per second, in training", *speeds))
        images = int((evaluation.predictions >= 0).sum())
        for name, key in (
            (f"{PARTS[part]} accuracy", f"{part}_accuracy"),
            ("of the averaged weights", f"ema_{part}_accuracy"),
        ):
            if key in summary:
                pair = summary[key], summary[f"twin_{key}"]
                rows.append(_accuracy_row(name, *pair, images))
        note += (
            " It was trained too, on the same images in the same order, with the same "
            f"recipe and seed; its own page is {TWIN}/{REPORT}. One seed tells little: "
            "another one moves both accuracies."
        )
    beside = table(("", "this model", "static twin", "in comparison"), rows, "plain")
    seconds = summary["wall_seconds"]
    speed = table(
        ("", ""),
        [
            ("images per second, in training", number(summary["images_per_second"])),
            ("compilation", duration(summary["compile_seconds"])),
            ("everything, evaluation too", duration(seconds)),
        ],
        "plain",
    )
    return section(
        "Speed and cost",
        _beside(beside, speed),
        note=note,
    )


def _beside(left: str, right: str) -> str:
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>'


def _cost_row(name: str, own: float, static: float) -> tuple[str, ...]:
    return name, f"{own:,.0f}", f"{static:,.0f}", f"{own / static:.2f} x"


def _accuracy_row(name: str, own: float, static: float, images: int) -> tuple[str, ...]:
    more = f"{round((own - static) * images):+,} of {images:,} images"
    return name, percent(own, 2), percent(static, 2), more


def configuration(run: Run) -> str:
    """Shows the flags, those that were changed first, and the command."""
    changed, usual = run.split_flags()
    flags = run.config.to_json()
    command = ["python", "-m", "train"]
    for name in changed:
        command += words_of(name, flags[name])
    parts = []
    if changed:
        parts.append(_flags_table(changed))
    parts.append(f"<pre>{text(shlex.join(command))}</pre>")
    parts.append(
        markup.details(
            f"{len(usual)} flags as they are by default", _flags_table(usual)
        )
    )
    return section("Configuration", *parts)


def environment(machine: Mapping[str, str]) -> str:
    """Shows on what the run was, when it ended.

    Args:
        machine: Facts by name.
    """
    rows = [(text(name), text(fact)) for name, fact in machine.items()]
    return section("Environment", table(("", ""), rows, "plain"))


def _flags_table(flags: Mapping[str, Any]) -> str:
    rows = [
        (f"<code>{flag_of(name)}</code>", text("–" if value in (None, ()) else value))
        for name, value in flags.items()
    ]
    return table(("flag", "value"), rows, "plain flags")
