"""The fast generator: its bits against published ones, its numbers against their laws, torch around it."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from weightnoise._random import draws as _random
from weightnoise._random import philox as _engine
from weightnoise.testing import check_gradients

pytestmark = pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")

LIBRARY: Any = _engine._LIBRARY
LEVELS = range(_engine._LEVEL + 1)  # The instruction sets of this machine.


def numbers(
    key: int, count: int, *, uniform: bool = False, level: int = _engine._LEVEL, threads: int = 1
) -> Tensor:
    out = torch.full((count + 1,), math.nan)
    LIBRARY.weightnoise_fill(out.data_ptr(), count, key, uniform, level, threads)
    assert out[-1].isnan()  # Nothing beyond the end.
    return out[:-1]


def key(seed: int) -> Tensor:
    return torch.tensor(_random.derive_seed(seed, "test"))


# The bits.


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("counter", "keys", "words"),
    # The vectors that Random123 publishes for philox4x32-10, in its order.
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_published_vectors(counter: Any, keys: Any, words: Any, level: int) -> None:
    found = (ctypes.c_uint32 * 4)()
    block, stream = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
    LIBRARY.weightnoise_block(block, stream, keys[0] | keys[1] << 32, found, level)
    assert tuple(found) == words


def words_of(place: int, key: int) -> int:
    """The word at a place of an array, as csrc/kernels.h defines it."""
    group, within = divmod(place, 64)
    found = (ctypes.c_uint32 * 4)()
    LIBRARY.weightnoise_block(group * 16 + within % 16, 0, key, found, 0)
    return found[within // 16]


def test_numbers_are_what_the_words_of_their_place_say() -> None:
    # Written from the definitions, in double precision.
    uniform, normal, some = numbers(9, 300, uniform=True), numbers(9, 300), range(0, 300, 7)
    for place in some:
        assert uniform[place].item() == (words_of(place, 9) >> 8) / 2**24
        pair = place % 64 // 16 // 2 * 32 + place % 16 + place // 64 * 64  # Where the word of its radius is.
        radius = math.sqrt(-2 * math.log(((words_of(pair, 9) >> 1) + 0.5) / 2**31))
        angle = 2 * math.pi * words_of(pair + 16, 9) / 2**32
        expected = radius * (math.cos(angle) if place == pair else math.sin(angle))
        assert normal[place].item() == pytest.approx(expected, rel=3e-6, abs=3e-6)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 3 * 2**17 + 5])
def test_the_same_bits_at_any_width_and_thread_count(count: int, uniform: bool) -> None:
    expected = numbers(7, count, uniform=uniform, level=0)
    for level in LEVELS:
        for threads in (1, 2, 3, 200):
            assert torch.equal(numbers(7, count, uniform=uniform, level=level, threads=threads), expected)
    assert torch.equal(numbers(7, count + 100, uniform=uniform)[:count], expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("start", "end"), [(0, 5), (3, 64), (60, 70), (64, 128), (100, 1000)])
def test_a_part_has_the_bits_of_the_whole(start: int, end: int, level: int) -> None:
    out = torch.full((end - start + 1,), math.nan)
    LIBRARY.weightnoise_part(out.data_ptr(), start, end, 7, level)
    assert torch.equal(out[:-1], numbers(7, end)[start:])
    assert out[-1].isnan()


# The laws. Each bound is 5 standard errors, exceeded by chance once in 1.7 million.


def assert_near(value: Tensor, expected: float, std: float, count: int) -> None:
    assert abs(value.item() - expected) < 5 * std / math.sqrt(count)


def normal_moments(x: Tensor) -> Tensor:
    x = x.double()
    square = x.square()
    return torch.stack(
        [
            x.mean(),
            square.mean(),
            (x * square).mean(),
            square.square().mean(),
            (x[1:] * x[:-1]).mean(),
            (x[16:] * x[:-16]).mean(),  # The other number of a pair, for half of them.
            (square[16:] * square[:-16]).mean(),
            (x[64:] * x[:-64]).mean(),
            (x.abs() > 3).double().mean(),
            (x.abs() > 4.5).double().mean(),
        ]
    )


def check_normal(pieces: int, size: int) -> None:
    moments = torch.stack([normal_moments(numbers(key, size)) for key in range(pieces)]).mean(dim=0)
    three, four = (math.erfc(bound / math.sqrt(2)) for bound in (3, 4.5))
    expected = [
        (0, 1), (1, math.sqrt(2)), (0, math.sqrt(15)), (3, math.sqrt(96)),
        (0, 1), (0, 1), (1, math.sqrt(8)), (0, 1),
        (three, math.sqrt(three)), (four, math.sqrt(four)),
    ]  # fmt: skip
    for value, (mean, std) in zip(moments, expected, strict=True):
        assert_near(value, mean, std, pieces * size)


def kolmogorov_smirnov(x: Tensor, distribution: Callable[[Tensor], Tensor]) -> float:
    """The largest distance of the two distribution functions, times sqrt(n)."""
    ordered = x.double().sort().values
    places = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    expected = distribution(ordered)
    distance = torch.maximum((expected - places[:-1]).max(), (places[1:] - expected).max())
    return distance.item() * math.sqrt(len(x))


def test_normals_are_normal() -> None:
    check_normal(4, 10**6)


@pytest.mark.slow
def test_a_hundred_million_normals_are_normal() -> None:
    check_normal(25, 4 * 10**6)
    largest = max(numbers(key, 4 * 10**6).abs().max().item() for key in range(25))
    assert 5.2 < largest < 6.67  # The expected largest of 1e8 is 5.73; 6.66 is the end of 31 bits.


def test_the_distributions_by_kolmogorov_and_smirnov() -> None:
    # The limiting distribution exceeds 2.7 once in a million.
    assert kolmogorov_smirnov(numbers(1, 2 * 10**6), torch.special.ndtr) < 2.7
    uniform = numbers(2, 2 * 10**6, uniform=True)
    assert kolmogorov_smirnov(uniform + 2.0**-25, lambda x: x) < 2.7
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert kolmogorov_smirnov(numbers(1, 2 * 10**6) * 1.01, torch.special.ndtr) > 2.7  # It would see 2 %.


def test_keys_and_places_are_independent() -> None:
    rows = torch.stack([numbers(key, 4096) for key in range(400)]).double()
    assert_near((rows[1:] * rows[:-1]).mean(), 0, 1, 399 * 4096)
    assert_near(rows.sum(dim=0).square().mean() / 400, 1, math.sqrt(2), 4096)
    assert_near(rows.sum(dim=1).square().mean() / 4096, 1, math.sqrt(2), 400)
    signs = torch.stack([numbers(key * 2**32, 4096) for key in range(400)]).double().sign()
    assert_near((signs[1:] * signs[:-1]).mean(), 0, 1, 399 * 4096)


# In one pass with the addition.


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "size"), [(1, 5000), (50, 100), (7, 13), (5, 64), (300, 1), (3, 2**17 + 1)])
def test_the_sum_is_that_of_the_numbers(rows: int, size: int, level: int) -> None:
    weight, scale, out = torch.randn(rows, size), torch.rand(rows), torch.empty(rows, size)
    expected = torch.addcmul(weight, numbers(3, rows * size).reshape(rows, size), scale[:, None], value=0.25)
    for threads in (1, 3):
        pointers = (out.data_ptr(), weight.data_ptr(), scale.data_ptr())
        LIBRARY.weightnoise_add(*pointers, size, 0.25, rows * size, 3, level, threads)
        assert_close(out, expected, rtol=1e-6, atol=1e-6)


FUSED: dict[str, wn.Gaussian] = {
    "absolute": wn.Gaussian(0.1),
    "exact": wn.Gaussian(0.1, gradient="exact"),
    "absmax": wn.Gaussian(0.1, relative_to="absmax"),
    "std per output": wn.Gaussian(0.1, relative_to="std", per=0),
}


def layer(law: wn.Noise | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    made = nn.Linear(128, 128, bias=False)
    return made if law is None else wn.add_weight_noise(made, law, **options)


@pytest.mark.parametrize("law", FUSED.values(), ids=FUSED)
def test_a_fused_law_is_the_law_of_its_draw(law: wn.Gaussian) -> None:
    assert law.takes_keys
    weight = torch.randn(128, 128, requires_grad=True)
    assert _engine.can_fuse(weight)
    noise = _engine.filled(key(1), weight.shape)
    for factor in (1.0, -0.5):
        assert_close(
            law.apply_key(weight, int(key(1)), factor), law.apply(weight, noise, factor), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    "law",
    [
        wn.Gaussian(0.1, relative_to="value"),
        wn.Gaussian(0.1, relative_to="absmax", gradient="exact"),
        wn.Gaussian(0.1, relative_to="absmax", per=1),
    ],
    ids=str,
)
def test_what_one_pass_cannot_do_is_not_fused(law: wn.Gaussian) -> None:
    assert not law.takes_keys


@pytest.mark.parametrize("law", FUSED.values(), ids=FUSED)
def test_forwards_are_fresh_and_reproducible_with_one_draw_each(law: wn.Gaussian) -> None:
    noisy = layer(law)
    x = torch.eye(128)
    torch.manual_seed(3)
    first, second = noisy(x), noisy(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(noisy(x), first)
    with wn.hold_noise(noisy, seed=0):
        held = noisy(x)
        assert torch.equal(noisy(x), held)
    with wn.hold_noise(noisy, seed=0, sign=-1), wn.no_noise(noisy):
        clean = noisy(x)
    with wn.hold_noise(noisy, seed=0, sign=-1):
        assert_close(noisy(x) - clean, clean - held)
    with wn.scale_noise(noisy, 2.0):
        torch.manual_seed(3)
        assert_close(noisy(x) - clean, 2 * (first - clean))


def test_reads_of_one_forward_see_one_draw_also_after_an_edit() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            before = self.weight
            with torch.no_grad():
                self._parameters["weight"].add_(1.0)
            return before, self.weight, self.weight

    noisy = wn.add_weight_noise(Twice(128, 128), 0.1)
    before, after, again = noisy(torch.ones(1, 128))
    assert_close(after, before + 1.0)
    assert again is after
    (before + 2 * after).sum().backward()
    gradient: Any = noisy._parameters["weight"]
    assert torch.equal(gradient.grad, torch.full((128, 128), 3.0))


@pytest.mark.parametrize("law", FUSED.values(), ids=FUSED)
def test_the_gradient_goes_to_the_clean_weight(law: wn.Gaussian) -> None:
    noisy, x = layer(law), torch.randn(4, 128)
    torch.manual_seed(1)
    noisy(x).square().sum().backward()
    torch.manual_seed(1)
    weight = noisy.weight.detach().requires_grad_()
    (x @ weight.T).square().sum().backward()
    assert torch.equal(noisy._parameters["weight"].grad, weight.grad)
    check_gradients(layer(law), lambda model, x: model(x).square().mean(), x, max_entries=4)


def test_the_gradient_is_handed_over_and_not_copied() -> None:
    weight = nn.Parameter(torch.randn(128, 128))
    noisy, seen = _engine.add_normal(weight, 5, 0.1, None), []
    noisy.register_hook(lambda grad: seen.append(grad.data_ptr()))
    (noisy * 2).sum().backward()
    assert weight.grad is not None
    assert seen == [weight.grad.data_ptr()]


def test_a_noisy_weight_has_memory_of_its_own() -> None:
    weight, x = nn.Parameter(torch.randn(128, 128)), torch.randn(2, 128, requires_grad=True)
    before = weight.detach().clone()
    noisy = _engine.add_normal(weight, 5, 0.1, None)
    value = noisy.detach().clone()
    assert torch.equal(weight, before)
    output = nn.functional.linear(x, noisy)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(noisy, value)
    output.sum().backward()
    assert_close(x.grad, value.sum(dim=0).expand(2, 128))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_double_backward_and_forward_mode() -> None:
    weight, direction = torch.randn(128, 128, requires_grad=True), torch.randn(128, 128)
    noisy = _engine.add_normal(weight, 5, 0.1, None)
    (grad,) = torch.autograd.grad(noisy.pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad((grad * direction).sum(), weight)
    assert_close(second, 6 * noisy * direction)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(_engine.add_normal(dual, 5, 0.1, None)).tangent
    assert_close(tangent, direction)


def test_it_keeps_no_numbers() -> None:
    noisy = layer(wn.Gaussian(0.1))
    held: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        noisy.weight  # noqa: B018
    assert held == []


def test_a_padding_row_stays_clean() -> None:
    table = nn.Embedding(300, 100, padding_idx=4)
    with torch.no_grad():
        table.weight[4] = 7.0
    noisy = wn.add_weight_noise(table, 0.1)(torch.arange(300))
    assert bool((noisy[4] == 7.0).all())
    assert bool((noisy[5] != table._parameters["weight"][5]).all())


# What torch does around it.


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_draws_the_same_again(use_reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128))
    wn.add_weight_noise(model, 0.1)
    x = torch.randn(4, 128, requires_grad=True)
    found = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        model.zero_grad()
        (call(x).square().sum() + call(x).sum()).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for mine, other in zip(*found, strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize("make", [_random.normal, _random.symmetric_uniform], ids=["normal", "uniform"])
def test_vmap_means_what_its_randomness_says(make: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(3, 50, 50)
    different = vmap(lambda x: make(x) + x, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    same = vmap(lambda x: make(x) + x, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: make(x) + x)(x)
    assert different.std() > 0.5


def test_the_operator_under_vmap_has_a_key_for_each() -> None:
    keys = torch.tensor([1, 2, 1])
    found = vmap(lambda key: torch.ops.weightnoise.filled(key, [3000], False))(keys)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], numbers(2, 3000))
    torch.library.opcheck(torch.ops.weightnoise.filled, (torch.tensor(1), [3000], False))


@pytest.mark.compile
@pytest.mark.parametrize("law", [wn.Gaussian(0.1), wn.Uniform(0.1), wn.DropConnect(0.5)], ids=str)
def test_compiled_whole_and_fresh(law: wn.Noise) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        for part in model:
            part.weight.fill_(1.0)
    wn.add_weight_noise(model, law)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.eye(64)
    assert not torch.equal(compiled(x), compiled(x))
    torch.manual_seed(1)
    first = compiled(x)
    torch.manual_seed(1)
    assert torch.equal(compiled(x), first)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ model[0].weight, x @ model[1].weight

    one, other = torch.compile(both, backend="aot_eager", fullgraph=True)(x)
    assert not torch.equal(one, other)  # Two draws are not merged.


def test_fake_tensors_draw_fake_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        assert isinstance(_random.normal(torch.empty(100, 100)), FakeTensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    for make, std in ((_random.normal, 1.0), (_random.symmetric_uniform, 3**-0.5)):
        drawn = make(torch.empty(100, 100, dtype=dtype))
        assert drawn.dtype == dtype
        assert drawn.double().std().item() == pytest.approx(std, rel=0.05)


def test_any_layout() -> None:
    conv: Any = nn.Conv2d(64, 64, 3)
    conv = conv.to(memory_format=torch.channels_last)
    assert not _engine.can_fuse(conv.weight)
    plain = copy.deepcopy(conv).weight.detach()
    noisy = wn.add_weight_noise(conv, 0.1)
    assert (noisy.weight - plain).std().item() == pytest.approx(0.1, rel=0.05)


def test_threads_do_not_disturb_each_other() -> None:
    expected, found = [numbers(key, 2**19, threads=2) for key in range(4)], {}

    def draw(key: int) -> None:
        found[key] = all(torch.equal(numbers(key, 2**19, threads=2), expected[key]) for _ in range(5))

    workers = [threading.Thread(target=draw, args=(key,)) for key in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == dict.fromkeys(range(4), True)


def test_torch_draws_where_it_is_told_to() -> None:
    code = (
        "import torch, weightnoise as wn; from weightnoise._random import draws; assert wn.engine() == 'torch';"
        "torch.manual_seed(0); a = torch.randn(4096); torch.manual_seed(0);"
        "assert torch.equal(a, draws.normal(a))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "WEIGHTNOISE_ENGINE": "torch"})
    assert wn.engine().startswith("philox")
