"""What the command line names: objects to import, and laws to read."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightnoise import laws
from weightnoise._config import spec_from_config
from weightnoise._select.patterns import listed
from weightnoise._select.resolve import Spec
from weightnoise.laws._spec import as_law

_REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_LAWS: dict[str, Any] = {name: law for name in laws.__all__ if is_dataclass(law := getattr(laws, name))}


class CommandError(Exception):
    """What the command line reports in one line.

    Args:
        message: the line.
        code: the exit code: 1 for a failure, 2 for wrong usage.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


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
    found = _load(reference)
    if not callable(found):
        raise CommandError(f"{reference} is {_shown(found)}; a function of the model is needed")
    return found  # type: ignore[no-any-return]


def _load(reference: str) -> Any:
    if not _REFERENCE.fullmatch(reference):
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


def read_spec(text: str) -> Spec:
    """The spec that ``text`` writes: as in Python, in JSON, or as the name of a ``.json`` file.

    In Python's notation there are laws by name, numbers, strings, None, lists and dicts, and nothing
    is evaluated. JSON is what `spec_to_config` makes.

    Raises:
        CommandError: for what cannot be read, and for what is no spec.

    Example:
        >>> read_spec('{"encoder.*": [Clip(2.5), Gaussian(0.1, relative_to="absmax")], "head.*": None}')
        {'encoder.*': [Clip(k=2.5), Gaussian(std=0.1, relative_to='absmax')], 'head.*': None}
    """
    try:
        spec = spec_from_config(_from_file(Path(text)) if text.endswith(".json") else _from_text(text))
        for value in spec.values() if isinstance(spec, Mapping) else (spec,):
            as_law(value)
    except OSError as error:
        raise CommandError(f"cannot read {text}: {error.strerror or error}") from None
    except SyntaxError as error:
        form = "Gaussian(0.1, relative_to='absmax'), a list of laws, a dict of them by name, JSON or a .json file"
        raise CommandError(f"cannot read the law {text!r}: {error.msg}; give {form}") from None
    except (TypeError, ValueError) as error:
        raise CommandError(f"cannot read the law {text!r}: {error}") from None
    if spec is None:
        raise CommandError(f"{text!r} is no law.")
    return spec


def _from_file(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return _value(ast.parse(text.strip(), mode="eval").body)


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            if name not in _LAWS:
                known = get_close_matches(name, _LAWS) or _LAWS
                raise ValueError(f"{name} is no law, but {' or '.join(known)} would be")
            options = {str(option.arg): _value(option.value) for option in node.keywords}
            return _LAWS[name](*map(_value, node.args), **options)
        case ast.Dict():
            return dict(zip(map(_value, node.keys), map(_value, node.values), strict=True))
        case ast.List():
            return list(map(_value, node.elts))
        case ast.Tuple():
            return tuple(map(_value, node.elts))
        case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return ast.literal_eval(node)
    raise ValueError(f"{ast.unparse(node) if node else '**'!r} is no law, number or text")
