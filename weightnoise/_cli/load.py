"""The objects that the command line names: models, metrics and what specs may name, to import."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightnoise._cli.terminal import CommandError
from weightnoise._select.patterns import listed

_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def load_model(reference: str, *, seed: int = 0) -> nn.Module:
    """The module that ``MODULE:NAME`` names: itself, or what it returns when it is called.

    Args:
        reference: as uvicorn and gunicorn have it; the current directory can be imported from.
        seed: of what is drawn from torch's generator meanwhile, such as weights.

    Raises:
        CommandError: if there is no such thing, or if it is no module and makes none.

    Example:
        >>> load_model("torch.nn:Identity")
        Identity()
    """
    torch.manual_seed(seed)
    found = _load(reference)
    torch.manual_seed(seed)  # Whether the import was the first and has drawn something does not matter.
    model = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        what = "is" if model is found else "returned"
        raise CommandError(
            f"{reference} {what} {_shown(model)}; a torch.nn.Module is needed, or a function that makes one"
        )
    return model


def load_metric(reference: str) -> Callable[[Any], Any]:
    """The function that ``MODULE:NAME`` names.

    Raises:
        CommandError: if there is no such thing, or if it cannot be called.
    """
    return _function(reference, "the model")


def load_function(reference: str) -> Callable[[Any], Any]:
    """The function from a level to a law that ``MODULE:NAME`` names.

    Raises:
        CommandError: if there is no such thing, or if it cannot be called.
    """
    return _function(reference, "the level")


def _function(reference: str, of: str) -> Callable[[Any], Any]:
    found = _load(reference)
    if not callable(found):
        raise CommandError(f"{reference} is {_shown(found)}; a function of {of} is needed")
    return found  # type: ignore[no-any-return]


def is_reference(text: str) -> bool:
    """Whether a text has the form ``MODULE:NAME``."""
    return _REFERENCE.fullmatch(text) is not None


def code_of(metric: Any) -> str:
    """A hash of what a function, or the class of an object, does: of its code without comments and layout."""
    try:
        source = inspect.getsource(
            metric if inspect.isroutine(metric) or inspect.isclass(metric) else type(metric)
        )
        tree = ast.dump(ast.parse(textwrap.dedent(source)))
    except (OSError, SyntaxError, TypeError):
        return "unknown"
    return hashlib.sha256(tree.encode()).hexdigest()[:12]


def load_allowed(references: Iterable[str]) -> list[Any]:
    """The classes and functions that a spec may name besides: each one that a ``MODULE:NAME`` names.

    Raises:
        CommandError: if there is no such thing.
    """
    return [_load(reference) for reference in references]


def _load(reference: str) -> Any:
    if not is_reference(reference):
        raise CommandError(f"{reference!r} is not of the form MODULE:NAME, such as model:make_model.")
    module_name, _, path = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # The module is there, and imports another that is not.
        hint = "; leave .py out" if module_name.endswith(".py") else ""
        raise CommandError(f"there is no module {module_name!r} in {here} or installed{hint}") from None
    before = module_name
    for name in path.split("."):
        if not hasattr(found, name):
            close = get_close_matches(name, dir(found))
            hint = f"; closest names: {listed(close)}" if close else ""
            raise CommandError(f"there is no {name!r} in {before}{hint}")
        found = getattr(found, name)
        before = f"{module_name}:{name}"
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
