"""What the routers of a run do, in sentences."""

import numpy as np

from dynconv_jax.diagnostics import COLLAPSE_SHARE
from train.learning.evaluation import Evaluation

# A share that differs by less between any two images does not tell them apart.
LEAST_SPREAD = 0.01
# From this mean distance of classes' attention from that of all, it shows in a picture.
LEAST_DIFFERENCE = 0.1

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def router_name(path: str) -> str:
    """Returns what the router at a path is called.

    Example:
        >>> router_name("stage1.dyn.router"), router_name("router")
        ('stage1.dyn', 'router')
    """
    return path.removesuffix(".router") or "router"


def faults(evaluation: Evaluation) -> list[str]:
    """Returns a sentence for each router that does not do what routers are for.

    Its experts are of no use where one has all of the attention, some have none, or all
    images are treated alike. A layer of a warehouse may leave cells to the others.

    Args:
        evaluation: What the routers did with the test images.
    """
    found = (_fault(path, evaluation) for path in evaluation.shares)
    return [sentence for sentence in found if sentence is not None]


def _fault(path: str, evaluation: Evaluation) -> str | None:
    name, is_mixture = router_name(path), path.endswith(".mixture")
    shares, dead = evaluation.shares[path], evaluation.dead[path]
    if len(shares) == 1:
        return None
    if shares.max() > COLLAPSE_SHARE:
        used, what = int(shares.argmax()), "cell" if is_mixture else "expert"
        images = f"{100 * evaluation.usage[path][used]:.1f}".removesuffix(".0")
        return f"{name} uses one {what} for {images} % of images: {used}"
    if dead and not is_mixture:
        verb = "is" if len(dead) == 1 else "are"
        return (
            f"{_word(len(dead))} of {_word(len(shares))} experts of {name} {verb} "
            f"dead: {', '.join(map(str, dead))}"
        )
    if evaluation.spread[path] < LEAST_SPREAD:
        return f"{name} treats all images alike"
    return None


def in_words(evaluation: Evaluation) -> list[str]:
    """Returns `faults`, and what is to be said of the other routers, if any choose.

    The last sentence is on classes, which one sees in the pictures.

    Args:
        evaluation: What the routers did with the test images.
    """
    choosing = [path for path, each in evaluation.shares.items() if len(each) > 1]
    sentences = faults(evaluation)
    sound = len(choosing) - len(sentences)
    if sound:
        which = "the other" if sentences else "the" if sound == 1 else "all"
        does = (
            "router uses its experts and tells"
            if sound == 1
            else "routers use their experts and tell"
        )
        sentences.append(f"{which} {does} images apart")
    between = {path: between_classes(evaluation.attention[path]) for path in choosing}
    telling = [path for path, each in between.items() if each >= LEAST_DIFFERENCE]
    if telling:
        most = router_name(max(telling, key=between.__getitem__))
        by = f"{_word(len(telling))} of {_word(len(choosing))} routers, most by {most}"
        by = f"the router {most}" if len(choosing) == 1 else by
        sentences.append(f"classes are routed differently by {by}")
    elif sound:
        sentences.append("all classes are routed much alike")
    return sentences


def between_classes(attention: np.ndarray) -> float:
    """Returns the mean distance of a class's attention from that of all classes.

    Half the sum of absolute differences: 0 where classes are treated alike, and nearly
    1 where each of many has an expert of its own.

    Args:
        attention: The mean attention by class, (classes, K).

    Example:
        >>> between_classes(np.array([[1.0, 0.0], [0.0, 1.0]]))
        0.5
    """
    return float(np.abs(attention - attention.mean(0)).sum(1).mean() / 2)


def _word(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)
