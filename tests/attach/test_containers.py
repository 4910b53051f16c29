"""nn.ParameterList and nn.ParameterDict make Parameters of the tensors they are given, and of noisy ones none."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.helpers import in_forward

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.
Operation = Callable[[Any], Any]


class Holder(nn.Module):
    """A model that holds both kinds, and reads neither."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.several = nn.ParameterList(nn.Parameter(torch.randn(size, size)) for _ in range(4))
        self.named = nn.ParameterDict({name: nn.Parameter(torch.randn(size, size)) for name in "abcd"})


def make(size: int) -> Holder:
    return wn.add_weight_noise(Holder(size), 0.1)


def other(container: Any) -> Any:
    """A container of the same kind, without noise."""
    like = next(iter(container.parameters()))
    plain = nn.Parameter(torch.zeros_like(like))
    return nn.ParameterList([plain]) if isinstance(container, nn.ParameterList) else nn.ParameterDict({"z": plain})


def fresh(container: Any) -> Tensor:
    return torch.zeros_like(next(iter(container.parameters())).detach())


def changed(change: Callable[[Any], object]) -> Operation:
    """A statement, which gives nothing back."""
    return lambda container: change(container) and None


def set_item(key: Any, value: Callable[[Any], Any]) -> Operation:
    def run(container: Any) -> None:
        container[key] = value(container)

    return run


def in_place(change: Callable[[Any, Any], Any], given: Callable[[Any], Any]) -> Operation:
    def run(container: Any) -> None:
        if change is add:
            container += given(container)
        elif change is unite:
            container |= given(container)
        else:
            with torch.no_grad():
                container["a" if isinstance(container, nn.ParameterDict) else 0] *= 2

    return run


def add(*_: Any) -> None: ...


def unite(*_: Any) -> None: ...


def times(*_: Any) -> None: ...


# What reads gives noisy values: a tensor, or some.
LIST_READS: dict[str, Operation] = {
    "[i]": lambda many: many[1],
    "[-i]": lambda many: many[-1],
    "iter": lambda many: list(many),
    "for": lambda many: [value + 0 for value in many],
    "reversed": lambda many: list(reversed(many)),
    "enumerate": lambda many: [value for _, value in enumerate(many)],
    "unpack": lambda many: [*many],
    "getattr": lambda many: getattr(many, "1"),
    "slice": lambda many: list(many[1:]),
    "slice by index": lambda many: many[1:][1],
    "slice by step": lambda many: list(many[::-2]),
    "slice of a slice": lambda many: list(many[1:][1:]),
    "slice reversed": lambda many: list(reversed(many[1:])),
    "copy.copy": lambda many: copy.copy(many)[1],
}
DICT_READS: dict[str, Operation] = {
    "[key]": lambda named: named["b"],
    "get": lambda named: named.get("b"),
    "get a default": lambda named: named.get("b", 3),
    "setdefault": lambda named: named.setdefault("b", nn.Parameter(fresh(named))),
    "values": lambda named: list(named.values()),
    "items": lambda named: [value for _, value in named.items()],
    "dict": lambda named: list(dict(named).values()),
    "**": lambda named: list({**named}.values()),
    "getattr": lambda named: named.b,
    "copy.copy": lambda named: copy.copy(named)["b"],
}
# What would make a Parameter of a noisy value, or a container that is not noisy.
LIST_REFUSED: dict[str, Operation] = {
    "[i] =": set_item(0, lambda many: many[1]),
    "[i] = a tensor": set_item(0, fresh),
    "[i] *=": in_place(times, lambda many: None),
    "append": lambda many: many.append(many[0]),
    "append a tensor": lambda many: many.append(fresh(many)),
    "extend": lambda many: many.extend(many),
    "extend a list": lambda many: many.extend(list(many)),
    "extend half good": lambda many: many.extend([nn.Parameter(fresh(many)), many[0]]),
    "extend by an iterator": lambda many: many.extend(iter(many)),
    "extend by a slice": lambda many: many.extend(many[1:]),
    "+=": in_place(add, lambda many: many),
    "+= a slice": in_place(add, lambda many: many[1:]),
    "other +=": lambda many: other(many).__iadd__(many),
    "other.extend": lambda many: other(many).extend(many),
    "other.extend a slice": lambda many: other(many).extend(many[1:]),
    "other.extend an iterator": lambda many: other(many).extend(iter(many)),
    "ParameterList": lambda many: nn.ParameterList(many),
    "ParameterList of a slice": lambda many: nn.ParameterList(many[:2]),
}
DICT_REFUSED: dict[str, Operation] = {
    "[key] =": set_item("a", lambda named: named["b"]),
    "[key] = a tensor": set_item("a", fresh),
    "[new] =": set_item("z", lambda named: named["b"]),
    "[key] *=": in_place(times, lambda named: None),
    "setdefault": lambda named: named.setdefault("z", named["b"]),
    "update": lambda named: named.update(named),
    "update by a dict": lambda named: named.update(dict(named)),
    "update by pairs": lambda named: named.update(list(named.items())),
    "update by an iterator": lambda named: named.update(named.items()),
    "update half good": lambda named: named.update(
        OrderedDict(y=nn.Parameter(fresh(named)), z=named["a"]),
    ),
    "|=": in_place(unite, lambda named: named),
    "other |=": lambda named: other(named).__ior__(named),
    "other.update": lambda named: other(named).update(named),
    "other.update items": lambda named: other(named).update(named.items()),
    "ParameterDict": lambda named: nn.ParameterDict(named),
    "ParameterDict of items": lambda named: nn.ParameterDict(named.items()),
    "ParameterList of values": lambda named: nn.ParameterList(named.values()),
    "copy": lambda named: named.copy(),
    "| other": lambda named: named | other(named),
    "other |": lambda named: other(named) | named,
    "|": lambda named: named | named,
    "fromkeys": lambda named: named.fromkeys("xy", named["a"]),
}
# What takes out gives the Parameters.
LIST_STRUCTURE: dict[str, Operation] = {
    "[i] = a Parameter": set_item(0, lambda many: nn.Parameter(fresh(many))),
    "append a Parameter": lambda many: len(many.append(nn.Parameter(fresh(many)))),
    "extend by Parameters": lambda many: len(many.extend(other(many))),
    "+= Parameters": in_place(add, other),
    "len": len,
    "dir": lambda many: "append" in dir(many),
}
DICT_STRUCTURE: dict[str, Operation] = {
    "pop": lambda named: named.pop("b"),
    "popitem": lambda named: named.popitem()[1],
    "del": lambda named: named.__delitem__("b"),
    "clear": lambda named: named.clear(),
    "[key] = a Parameter": set_item("a", lambda named: nn.Parameter(fresh(named))),
    "setdefault": lambda named: named.setdefault("z"),
    "update": lambda named: named.update(other(named)),
    "|= other": in_place(unite, other),
    "fromkeys": lambda named: list(named.fromkeys("xy")),
    "keys": lambda named: list(named.keys()),
    "iter": lambda named: list(named),
    "reversed": lambda named: list(reversed(named)),
    "in": lambda named: "b" in named,
    "len": len,
    "get nothing": lambda named: named.get("z", 3),
}
TABLES = {
    "several": (nn.ParameterList, LIST_READS, LIST_REFUSED, LIST_STRUCTURE),
    "named": (nn.ParameterDict, DICT_READS, DICT_REFUSED, DICT_STRUCTURE),
}


def table(place: int) -> list[Any]:
    return [
        pytest.param(attribute, operation, id=f"{attribute}: {name}")
        for attribute, tables in TABLES.items()
        for name, operation in tables[place].items()  # type: ignore[attr-defined]
    ]


def test_the_table_has_all_that_torch_has() -> None:
    known = "__init__ __getitem__ __setitem__ __delitem__ __len__ __iter__ __iadd__ __dir__ append extend"
    known += " extra_repr __call__ __reversed__ copy __contains__ setdefault clear pop popitem get fromkeys keys"
    known += " items values update __or__ __ror__ __ior__ _get_abs_string_index _key_to_attr"
    for kind in (nn.ParameterList, nn.ParameterDict):
        assert {name for name, value in vars(kind).items() if inspect.isfunction(value)} <= set(known.split())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("attribute", "operation"), table(1))
def test_reads_are_noisy_and_the_gradient_reaches_the_parameter(
    attribute: str, operation: Operation, size: int
) -> None:
    model = make(size)
    container = getattr(model, attribute)
    clean = list(container.parameters())
    read = in_forward(operation, container)
    for value in read if isinstance(read, list) else [read]:
        assert isinstance(value, Tensor)
        assert not isinstance(value, nn.Parameter)
        assert min(float((value - parameter).detach().abs().mean()) for parameter in clean) > 0
        model.zero_grad()
        value.sum().backward()
        assert sum(parameter.grad is not None for parameter in clean) == 1
    assert all(one is other for one, other in zip(container.parameters(), clean, strict=True))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("attribute", "operation"), table(2))
def test_what_would_wrap_noise_is_refused(attribute: str, operation: Operation, size: int, grad: bool) -> None:
    model = make(size)
    container = getattr(model, attribute)
    before = dict(model.named_parameters()), len(container), list(container.state_dict())
    values = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.set_grad_enabled(grad), pytest.raises(wn.UnsupportedParameterError) as caught:
        in_forward(operation, container)
    assert f"'{attribute}." in str(caught.value)
    assert "with weightnoise.no_noise(model):" in str(caught.value)
    after = dict(model.named_parameters()), len(container), list(container.state_dict())
    assert [*after[0]] == [*before[0]]
    assert all(after[0][name] is before[0][name] for name in before[0])
    assert after[1:] == before[1:]
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), values, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("attribute", "operation"), table(3))
def test_what_changes_the_structure_gives_the_parameters(attribute: str, operation: Operation, size: int) -> None:
    model, plain = make(size), Holder(size)
    container, twin = getattr(model, attribute), getattr(plain, attribute)
    clean = list(container.parameters())
    result, expected = operation(container), operation(twin)
    if isinstance(expected, nn.Parameter):
        assert any(result is parameter for parameter in clean)
    else:
        assert result == expected
    assert list(container.state_dict()) == list(twin.state_dict())
    assert len(container) == len(twin)
    with wn.hold_noise(model, seed=0):
        copy.deepcopy(model)
    wn.remove_weight_noise(model)
    assert type(getattr(model, attribute)) is TABLES[attribute][0]
    assert all(isinstance(parameter, nn.Parameter) for parameter in container._parameters.values())


@pytest.mark.parametrize("off", [True, False])
@pytest.mark.parametrize(("attribute", "operation"), [*table(1), *table(2), *table(3)])
def test_all_is_as_in_torch_while_noise_is_off(attribute: str, operation: Operation, off: bool) -> None:
    if operation in (LIST_READS["copy.copy"], DICT_READS["copy.copy"]):
        return  # A copy is in none of the contexts.
    model, plain = make(8), Holder(8)
    if not off:
        wn.remove_weight_noise(model)
        wn.add_weight_noise(model.eval(), 0.1, when="training")
    container, twin = getattr(model, attribute), getattr(plain, attribute)
    with wn.no_noise(*([model] if off else [])):
        result, expected = operation(container), operation(twin)
    assert isinstance(result, type(expected))
    assert list(container.state_dict()) == list(twin.state_dict())
    if isinstance(result, (nn.ParameterList, nn.ParameterDict)):
        assert list(result.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize("size", SIZES)
def test_a_slice_without_noise_shares_the_parameters(size: int) -> None:
    model = make(size)
    with wn.no_noise(model):
        part, copied, both = model.several[1:3], model.named.copy(), model.named | other(model.named)
    assert type(part) is nn.ParameterList
    assert [id(p) for p in part.parameters()] == [id(p) for p in list(model.several.parameters())[1:3]]
    for made in (copied, both):
        assert [id(p) for p in made.parameters()][:4] == [id(p) for p in model.named.parameters()]


@pytest.mark.parametrize("size", SIZES)
def test_a_slice_is_a_view(size: int) -> None:
    model = make(size)
    part: Any = in_forward(lambda: model.several[1:])
    assert len(part) == 3
    assert torch.equal(*in_forward(lambda: (part[0], part[0])))
    assert not torch.equal(in_forward(lambda: part[0]), in_forward(lambda: part[0]))
    with wn.hold_noise(model, seed=0):
        assert torch.equal(part[0], model.several[1])
        assert torch.equal(part[1:][0], model.several[2])
    with wn.no_noise(model):
        assert part[-1] is model.several[3]
    with pytest.raises(AttributeError, match=r"'several\.1'.*'parameters'.*with weightnoise\.no_noise\(model\):"):
        part.parameters()
    with pytest.raises(IndexError):
        _ = part[3]


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("size", SIZES)
def test_copies_stay_noisy(size: int, way: Any) -> None:
    model = make(size)
    for attribute in TABLES:
        container = getattr(model, attribute)
        twin = way(container)
        assert all(torch.equal(*pair) for pair in zip(twin.parameters(), container.parameters(), strict=True))
        first = in_forward(lambda twin, key: twin[key], twin, 0 if attribute == "several" else "a")
        assert not isinstance(first, nn.Parameter)
    loaded = io.BytesIO()
    torch.save(model.state_dict(), loaded)
    loaded.seek(0)
    model.load_state_dict(torch.load(loaded))


def test_printing_draws_nothing() -> None:
    model, plain = make(8), Holder(8)
    state = torch.get_rng_state()
    assert model.several.extra_repr() == plain.several.extra_repr()
    assert model.named.extra_repr().replace("Parameter containing: [torch.nn.parameter.Parameter", "") == (
        plain.named.extra_repr().replace("Parameter containing: [torch.nn.parameter.Parameter", "")
    )
    repr(model)
    assert torch.equal(torch.get_rng_state(), state)


class Layers(nn.Module):
    """A model whose forward slices, loops and looks up."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.several = nn.ParameterList(nn.Parameter(torch.randn(size, size) / size) for _ in range(4))
        self.named = nn.ParameterDict({"last": nn.Parameter(torch.randn(size, size) / size)})

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.several[0]
        for weight in self.several[1:]:
            x = x @ weight
        for weight in self.several:
            x = x + weight.sum()
        for weight in self.named.values():
            x = x @ weight
        return x @ self.named["last"]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compile)])
@pytest.mark.parametrize("size", SIZES)
def test_a_model_that_slices_trains_at_its_noisy_weights(size: int, compiled: bool) -> None:
    torch.manual_seed(0)
    model, x = Layers(size), torch.randn(3, size)
    plain = copy.deepcopy(model)
    wn.add_weight_noise(model, 0.1)
    run: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with wn.hold_noise(model, seed=0):
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                prefix, _, key = name.partition(".")
                parameter.copy_(getattr(getattr(model, prefix), key))
        output = run(x)
        torch.testing.assert_close(output, plain(x), rtol=1e-4, atol=1e-4)
        output.sum().backward()
    plain(x).sum().backward()
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-3)
