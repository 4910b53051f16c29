"""The fast generator: its bits against published ones, its numbers against their laws, torch around it."""

from __future__ import annotations

import copy
import importlib
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.helpers import seen
from tests.random import definition
from weightnoise._random import draws as _random
from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds
from weightnoise.testing import check_gradients

pytestmark = pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")

LIBRARY: Any = _engine._LIBRARY
LEVELS = range(_engine._LEVEL + 1)  # The instruction sets of this machine.


NORMAL, UNIFORM, WORDS = range(3)  # Kinds of numbers, in csrc/.


def numbers(key: int, count: int, *, kind: int = NORMAL, level: int = _engine._LEVEL, threads: int = 1) -> Tensor:
    out = torch.full((count + 1,), math.nan)
    LIBRARY.weightnoise_fill(out.data_ptr(), count, key, kind, level, threads)
    assert out[-1].isnan()  # Nothing beyond the end.
    return out[:-1]


def key(seed: int) -> Tensor:
    return torch.tensor(_seeds.derive_seed(seed, "test"))


# The bits.


@pytest.mark.parametrize(
    ("counter", "keys", "words"),
    # The vectors that Random123 publishes for philox4x32-7, in its order.
    [
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_definition_has_the_published_vectors(counter: Any, keys: Any, words: Any) -> None:
    assert tuple(int(word) for word in definition.philox(counter, keys)) == words


@pytest.mark.parametrize("level", LEVELS)
def test_a_published_vector_lies_at_its_places(level: int) -> None:
    found = numbers(0, 64, kind=WORDS, level=level).view(torch.int32)[[1, 0, 33, 32]]
    assert [word.item() & 0xFFFFFFFF for word in found] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [0, 9, 2**32, 2**63 - 2, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 2**34 - 1000, 2**40 - 37])  # At 2^34 the block numbers pass 32 bits.
def test_the_bits_are_those_of_the_definition(start: int, key: int, level: int) -> None:
    words = definition.words(key, 5000, start)
    out = torch.empty(5000)
    LIBRARY.weightnoise_part(out.data_ptr(), start, start + 5000, key, level)
    assert np.array_equal(out.numpy(), definition.normals(words))
    if start == 0:
        assert np.array_equal(numbers(key, 5000, kind=WORDS, level=level).numpy().view(np.uint32), words)
        assert np.array_equal(numbers(key, 5000, kind=UNIFORM, level=level).numpy(), definition.uniforms(words))


def test_a_word_stands_for_its_quantile() -> None:
    # In double precision, for words in every octave, at its ends, and at the ends of all.
    sizes = np.concatenate([2**octave * (1 + np.arange(0, 1, 2**-12)) for octave in range(31)])
    sizes = np.concatenate([sizes, [1, 2**31 - 1, 2**31 - 63, 2**31 - 65]]).astype(np.uint32) | np.uint32(1)
    expected = -torch.special.ndtri(torch.from_numpy(sizes / 2**32))
    for words, sign in ((sizes, 1), (~sizes + np.uint32(1), -1)):
        found = torch.from_numpy(definition.normals(words)).double() * sign
        assert_close(found, expected, rtol=0, atol=4e-6)
    ends = definition.normals(np.array([0, 0xFFFFFFFF], dtype=np.uint32))
    assert ends.tolist() == pytest.approx([6.23026, -6.23026])


def test_the_moments_of_all_words() -> None:
    # The bias that no number of draws would average away: 4,096 words of each octave, with its probability.
    square = fourth = 0.0
    for octave in range(31):
        words = (2.0**octave * (1 + np.arange(0.5, 4096) / 4096)).astype(np.uint32) | np.uint32(1)
        exact = torch.special.ndtri(torch.from_numpy(words / 2**32)).numpy() ** 2
        found = definition.normals(words).astype(np.float64) ** 2
        square += 2.0 ** (octave - 31) * (found - exact).mean()
        fourth += 2.0 ** (octave - 31) * (found**2 - exact**2).mean()
    assert abs(square) < 3e-7
    assert abs(fourth) < 2e-6


@pytest.mark.parametrize("kind", [NORMAL, UNIFORM])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 3 * 2**17 + 5])
def test_the_same_bits_at_any_width_and_thread_count(count: int, kind: int) -> None:
    expected = numbers(7, count, kind=kind, level=0)
    for level in LEVELS:
        for threads in (1, 2, 3, 200):
            assert torch.equal(numbers(7, count, kind=kind, level=level, threads=threads), expected)
    assert torch.equal(numbers(7, count + 100, kind=kind)[:count], expected)


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
    square = x.square()
    averaged = [
        x,
        square,
        x * square,
        square.square(),
        x[1:] * x[:-1],
        square[1:] * square[:-1],  # Of one block, for half of them.
        x[32:] * x[:-32],  # Likewise.
        square[32:] * square[:-32],
        x[64:] * x[:-64],
        x.abs() > 3,
        x.abs() > 4.5,
    ]
    return torch.stack([each.sum(dtype=torch.float64) / len(each) for each in averaged])


def check_normal(pieces: int, size: int) -> None:
    """Compares moments, tails, correlations and the distribution function."""
    bins, moments = 2**16, torch.zeros(11, dtype=torch.float64)
    counts = torch.zeros(bins, dtype=torch.float64)
    for key in range(pieces):
        x = numbers(key, size)
        moments += normal_moments(x) / pieces
        counts += torch.bincount((torch.special.ndtr(x) * bins).long().clamp_(0, bins - 1), minlength=bins)
    distance = (counts.cumsum(0) / (pieces * size) - torch.arange(1, bins + 1) / bins).abs().max()
    assert distance.item() * math.sqrt(pieces * size) < 2.7  # As below.
    three, four = (math.erfc(bound / math.sqrt(2)) for bound in (3, 4.5))
    expected = [
        (0, 1), (1, math.sqrt(2)), (0, math.sqrt(15)), (3, math.sqrt(96)),
        (0, 1), (1, math.sqrt(8)), (0, 1), (1, math.sqrt(8)), (0, 1),
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
    assert 5.2 < largest < 6.231  # The expected largest of 1e8 is 5.73; 6.2303 is the end of 31 bits.


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_a_billion_normals_are_normal() -> None:
    check_normal(250, 4 * 10**6)


def test_the_distributions_by_kolmogorov_and_smirnov() -> None:
    # The limiting distribution exceeds 2.7 once in a million.
    assert kolmogorov_smirnov(numbers(1, 2 * 10**6), torch.special.ndtr) < 2.7
    uniform = numbers(2, 2 * 10**6, kind=UNIFORM)
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
        LIBRARY.weightnoise_add(*pointers, 0, size, 0.25, rows * size, 3, level, threads)
        assert_close(out, expected, rtol=1e-6, atol=1e-6)


PLACES = [((50, 100), 1), ((300, 7), 1), ((40, 63), -1), ((2, 1500), 1), ((64, 32, 3, 3), 1), ((6, 5, 129), 2)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("shape", "dim"), PLACES)
def test_a_scale_for_each_place_of_a_row(
    shape: tuple[int, ...], dim: int, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "_LEVEL", level)
    weight = torch.randn(shape)
    scale = torch.rand([size if one == dim % weight.ndim else 1 for one, size in enumerate(shape)])
    noise = _engine.filled(key(3), shape)
    expected = weight + torch.tensor(0.25) * scale * noise
    assert torch.equal(_engine.add_normal(weight, int(key(3)), 0.25, scale), expected)
    rows, some = weight.flatten(1), torch.tensor([1, 0, 1, shape[0] - 1])
    scales = scale.expand(1, *shape[1:]).reshape(1, -1)
    found = _engine.add_normal_rows(rows[some], some, int(key(3)), 0.25, scales)
    assert torch.equal(found, expected.flatten(1)[some])


def test_a_part_of_a_weight_has_its_places() -> None:
    law, weight = wn.Gaussian(0.1, relative_to="absmax", per=1), torch.randn(60, 90)
    whole, rows = law.apply_key(weight, 5, 1.0), torch.arange(60)
    for i, part in enumerate(weight.chunk(3, dim=1)):
        own = law.apply_part(part.contiguous(), (5, rows * 3 + i), 1.0, lambda scale: scale)
        assert own is not None
        assert torch.equal(own, whole.chunk(3, dim=1)[i])
    largest = weight.abs().amax(0, keepdim=True)
    for i, part in enumerate(weight.chunk(3)):
        own = law.apply_part(part, (5, rows.chunk(3)[i]), 1.0, lambda scale: largest)
        assert own is not None
        assert torch.equal(own, whole.chunk(3)[i])


FUSED: dict[str, wn.Gaussian] = {
    "absolute": wn.Gaussian(0.1),
    "exact": wn.Gaussian(0.1, gradient="exact"),
    "absmax": wn.Gaussian(0.1, relative_to="absmax"),
    "std per output": wn.Gaussian(0.1, relative_to="std", per=0),
    "absmax per input": wn.Gaussian(0.1, relative_to="absmax", per=1),
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
        wn.Gaussian(0.1, relative_to="absmax", tile=(8, 8)),
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
    weight = seen(noisy).detach().requires_grad_()
    (x @ weight.T).square().sum().backward()
    assert_close(noisy._parameters["weight"].grad, weight.grad, rtol=0, atol=0)
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
    assert (seen(noisy) - plain).std().item() == pytest.approx(0.1, rel=0.05)


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


def test_the_module_may_be_loaded_again_as_notebooks_do() -> None:
    before = _engine.filled(torch.tensor(1), [2500])
    again = importlib.reload(_engine)
    assert torch.equal(again.filled(torch.tensor(1), [2500]), before)
    assert torch.equal(torch.ops.weightnoise.filled(torch.tensor(1), [2500], False), before)
    header = (Path(_engine.__file__).parent / "csrc" / "engine.h").read_text()
    names = re.findall(r"^\w+ (weightnoise_\w+)\((?!void)", header, flags=re.MULTILINE)
    assert len(names) == len(again._ARGUMENTS)
    assert all(getattr(again._LIBRARY, name).argtypes for name in names)  # Else an address is cut to 32 bits.


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this system has no large pages",
)
@pytest.mark.parametrize("make", ["sum", "numbers", "pass"])
def test_what_is_made_of_a_weight_of_32_mib_is_in_large_pages(make: str) -> None:
    import resource  # Windows has none.

    weight = torch.zeros(2**23 + 4096)
    with torch.no_grad():
        drawn = _engine.filled(torch.tensor(1), weight.shape)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if make == "sum":
            made = _engine.add_normal(weight, 1, 0.1, None)
        elif make == "numbers":
            made = _engine.filled(torch.tensor(2), weight.shape)
        else:
            made = wn.LogNormal(0.1).apply(weight, drawn, 1.0)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = made.nbytes / resource.getpagesize()
    assert faults < pages / 4, f"{faults} page faults for {pages:.0f} pages"
