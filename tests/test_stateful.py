"""Any sequence of adding, removing, contexts, forwards, training, copies and saves keeps the promises."""

from __future__ import annotations

import copy
import pickle

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import weightnoise as wn
from tests.cases import LAWS
from tests.helpers import seen
from weightnoise._noise.context import NoiseContext
from weightnoise._noise.control import When


class Life(RuleBasedStateMachine):
    """One model and the contexts that are open on it."""

    @initialize(normed=st.booleans())
    def build(self, normed: bool) -> None:
        middle = nn.Linear(3, 3)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(3, 3), parametrizations.weight_norm(middle) if normed else middle, nn.GRU(3, 3)
        )
        self.open: list[tuple[str, NoiseContext]] = []
        self.classes = [type(module) for module in self._modules()]
        self.names = [name for name, _ in self.model.named_parameters()]
        self.parameters = list(self.model.parameters())
        self.values = [p.detach().clone() for p in self.parameters]

    def _plain(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The Parameters without what laws learn."""
        added = wn.learned_strengths(model)
        return {name: value for name, value in model.named_parameters() if name not in added}

    def _modules(self) -> list[nn.Module]:
        return [self.model[0], self.model[2]]

    def _noisy(self) -> bool:
        return wn.has_weight_noise(self.model)

    @precondition(lambda self: not self._noisy())
    @rule(law=st.sampled_from(sorted(LAWS)), when=st.sampled_from(["always", "training"]))
    def add(self, law: str, when: When) -> None:
        wn.add_weight_noise(self.model, LAWS[law], when=when)
        # Contexts lie on the noises that were there when they were entered.
        self.open = []

    @precondition(lambda self: self._noisy())
    @rule()
    def remove(self) -> None:
        wn.remove_weight_noise(self.model)

    @precondition(lambda self: self._noisy())
    @rule(kind=st.sampled_from(["off", "hold", "scale", "force"]), seed=st.integers(0, 3))
    def enter(self, kind: str, seed: int) -> None:
        context = {
            "off": lambda: wn.no_noise(self.model),
            "hold": lambda: wn.hold_noise(self.model, seed=seed),
            "scale": lambda: wn.scale_noise(self.model, 0.5),
            "force": lambda: wn.force_noise(self.model),
        }[kind]()
        context.__enter__()
        self.open.append((kind, context))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, context = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        context.__exit__(None, None, None)

    @rule(training=st.booleans())
    def mode(self, training: bool) -> None:
        self.model.train(training)

    @rule()
    def train(self) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.model(torch.ones(2, 3))[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        self.values = [p.detach().clone() for p in self.parameters]

    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def copied(self, way: str) -> None:
        try:
            other = copy.deepcopy(self.model) if way == "deepcopy" else pickle.loads(pickle.dumps(self.model))
        except Exception as error:
            if way == "deepcopy":
                raise
            # Lambdas do not pickle, and torch refuses to pickle other parametrizations.
            assert "pickle" in str(error) or "Serialization" in str(error)  # noqa: PT017
            return
        assert all(torch.equal(a, b) for a, b in zip(self._plain(other).values(), self.parameters, strict=True))
        other(torch.ones(2, 3))
        if wn.has_weight_noise(other):
            wn.remove_weight_noise(other)

    @rule()
    def saved(self) -> None:
        self.model.load_state_dict(copy.deepcopy(self.model.state_dict()), strict=True)

    @invariant()
    def the_parameters_never_move(self) -> None:
        plain = self._plain(self.model)
        assert list(plain) == self.names
        assert all(a is b for a, b in zip(plain.values(), self.parameters, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(self.parameters, self.values, strict=True))

    @invariant()
    def noise_is_on_exactly_where_it_should_be(self) -> None:
        for module in self._modules():
            name = next(iter(module._parameters))
            clean = seen(module, name) is module._parameters[name]
            assert clean is not self._should_be_noisy(module, name)

    def _should_be_noisy(self, module: nn.Module, name: str) -> bool:
        if not parametrize.is_parametrized(module, name):
            return False
        when = module.parametrizations[name][0].control.when
        kinds = [kind for kind, _ in self.open]
        return "off" not in kinds and (when == "always" or module.training or "force" in kinds)

    @invariant()
    def without_noise_the_classes_are_the_old_ones(self) -> None:
        if not self._noisy():
            assert [type(module) for module in self._modules()] == self.classes


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
