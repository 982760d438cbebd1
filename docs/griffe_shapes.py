"""Shows the shapes of annotations as they are written, "experts *kernel" too."""

from typing import Any

import griffe


class WrittenShapes(griffe.Extension):
    """Undoes that a shape which is also an expression of Python is read as one."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Looks through the annotations of a function."""
        if isinstance(obj, griffe.Function):
            for annotation in (
                obj.returns,
                *(each.annotation for each in obj.parameters),
            ):
                _write(annotation)


def _write(annotation: Any) -> None:
    if not isinstance(annotation, griffe.Expr):
        return
    if isinstance(annotation, griffe.ExprSubscript) and _is_of_jaxtyping(annotation):
        parts: Any = annotation.slice
        *_, shape = parts.elements
        if isinstance(shape, griffe.Expr):
            parts.elements[-1] = repr(str(shape).replace("* ", "*"))
    for part in annotation.iterate(flat=False):
        if part is not annotation:  # a name has itself
            _write(part)


def _is_of_jaxtyping(annotation: griffe.ExprSubscript) -> bool:
    return annotation.left.canonical_path.startswith("jaxtyping.")  # pyright: ignore
