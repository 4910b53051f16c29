"""Laws as the command line writes them: Python's notation, read and never run, or JSON."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from weightnoise import devices, laws
from weightnoise._cli.files import read_text
from weightnoise._cli.terminal import CommandError
from weightnoise._config import spec_from_config
from weightnoise._select.choose import Spec
from weightnoise.laws._spec import as_law

_LAWS: dict[str, Any] = {name: law for name in laws.__all__ if is_dataclass(law := getattr(laws, name))}


def read_spec(text: str, allowed: Iterable[Any] = ()) -> Spec:
    """The spec that ``text`` writes: as in Python, in JSON, or as the name of a ``.json`` or ``.yaml`` file.

    In Python's notation there are laws and devices by name, numbers, strings, None, lists and dicts, and
    nothing is evaluated; ``SONOS(time=86400.0)`` is ``replace(devices.SONOS, time=86400.0)``. JSON is what
    `spec_to_config` makes; ``allowed`` is what it may name besides.

    Raises:
        CommandError: for what cannot be read, and for what is no spec.

    Example:
        >>> read_spec('{"encoder.*": [Clip(2.5), Gaussian(0.1, relative_to="absmax")], "head.*": None}')
        {'encoder.*': [Clip(k=2.5), Gaussian(std=0.1, relative_to='absmax')], 'head.*': None}
    """
    try:
        config = _from_file(Path(text)) if text.endswith((".json", ".yaml", ".yml")) else _from_text(text)
        spec = spec_from_config(config, allow=allowed)
        for value in spec.values() if isinstance(spec, Mapping) else (spec,):
            as_law(value)
    except SyntaxError as error:
        form = "Gaussian(0.1, relative_to='absmax'), a list of laws, a dict of them by name, JSON, or a file of it"
        raise CommandError(f"cannot read the law {text!r}: {error.msg}; give {form}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise CommandError(f"cannot read the law {text!r}: {error}") from None
    if spec is None:
        raise CommandError(f"{text!r} is no law.")
    return spec


def _from_text(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        return _value(ast.parse(text.strip(), mode="eval").body)


def _from_file(path: Path) -> Any:
    text = read_text(path)
    if path.suffix == ".json":
        return json.loads(text, object_pairs_hook=_once)
    if importlib.util.find_spec("yaml") is None:
        raise CommandError(f"{path} needs PyYAML: pip install pyyaml, or write it as JSON")
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Data and nothing else; 1e-3 is a number, as in JSON, and a key stands once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            pairs = [
                (self.construct_object(key, True), self.construct_object(one, True)) for key, one in node.value
            ]
            return _once(pairs)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _once(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping whose keys stand once: of two laws for a pattern one would be lost."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands twice")
        found[key] = value
    return found


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="devices"), attr=name)) if (
            name in devices.__all__ and not node.args
        ):
            return replace(_value(node.func), **{str(one.arg): _value(one.value) for one in node.keywords})
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="devices"), attr=name) if name in devices.__all__:
            return getattr(devices, name)
        case ast.Call(func=ast.Name(id="replace"), args=[device]):
            return replace(_value(device), **{str(one.arg): _value(one.value) for one in node.keywords})
        case ast.Call(func=ast.Name(id=name)):
            if name not in _LAWS:
                known = get_close_matches(name, _LAWS) or _LAWS
                raise ValueError(f"{name} is no law, but {' or '.join(known)} would be")
            options = {str(option.arg): _value(option.value) for option in node.keywords}
            return _LAWS[name](*map(_value, node.args), **options)
        case ast.Dict():
            return _once([(_value(key), _value(value)) for key, value in zip(node.keys, node.values, strict=True)])
        case ast.List():
            return list(map(_value, node.elts))
        case ast.Tuple():
            return tuple(map(_value, node.elts))
        case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return ast.literal_eval(node)
    raise ValueError(f"{ast.unparse(node) if node else '**'!r} is no law, number or text")
