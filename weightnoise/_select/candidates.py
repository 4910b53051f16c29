"""The tensors of a model that could carry noise, and why some of them cannot."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from weightnoise._attach.noisy_class import clean_class
from weightnoise._attach.stack import InPlaceList
from weightnoise._errors import NO_LAYOUT
from weightnoise._noise.drawing import Memory
from weightnoise._noise.over_mesh import mesh_problem
from weightnoise._noise.weight_noise import Estimator, WeightNoise
from weightnoise._torch.layers import Layout, layout_of
from weightnoise._torch.modules import children, is_dtensor, is_fully_sharded, parametrizations, walk

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_PRODUCTS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A Parameter, or a tensor that a stack of parametrizations makes, in the module that owns it.

    Attributes:
        names: every full clean name; the first is the one to show.
        owner: the module.
        tensor_name: the attribute of the owner.
        tensor: the Parameter, or one evaluation of the stack.
        source: what tied uses have in common: the Parameter itself, or the stack.
        noise: the noise that is on it already.
        has_siblings: whether the tensor of that name is a matrix in another module of the same class.
    """

    names: tuple[str, ...]
    owner: nn.Module
    tensor_name: str
    tensor: Tensor
    source: object
    noise: WeightNoise | None
    has_siblings: bool = False

    @property
    def name(self) -> str:
        """The name to show."""
        return self.names[0]

    @property
    def ndim(self) -> float:
        """The number of dimensions that count: one for a scale or a shift, whatever its shape.

        Infinite for a lazy Parameter, which has none yet.
        """
        if is_lazy(self.tensor):
            return math.inf
        return min(self.tensor.ndim, 1) if self.is_scale else self.tensor.ndim

    @property
    def is_scale(self) -> bool:
        """Whether it is a scale or a shift, such as a bias, and no matrix.

        So are all Parameters of torch's normalisations. Those of torch's layers with a matrix product are what
        their names say; those of other modules are one where at most one dimension is longer than 1.
        """
        if isinstance(self.owner, _NORMS):
            return True
        if isinstance(self.owner, _PRODUCTS) and "weight" in self.tensor_name:
            return self.tensor.ndim < 2
        return is_lazy(self.tensor) or not (self.has_siblings or _is_matrix(self.tensor))

    @property
    def may_be_matrix(self) -> bool:
        """Whether a scale may be a matrix all the same, with one row or column, of a layer of somebody's own."""
        known = isinstance(self.owner, (*_NORMS, *_PRODUCTS)) or is_lazy(self.tensor)
        if known or not self.is_scale or "bias" in self.tensor_name:
            return False
        shape = self.tensor.shape
        longer = max(shape, default=1) > 1
        return longer and (len(shape) == 2 or (len(shape) > 2 and "weight" in self.tensor_name and shape[1] > 1))

    @property
    def padding_row(self) -> int | None:
        """The row that stays clean: an embedding's padding, whose vector stands for nothing."""
        return self.owner.padding_idx if isinstance(self.owner, (nn.Embedding, nn.EmbeddingBag)) else None

    @property
    def layout(self) -> Layout | None:
        """Where the outputs and the inputs of the module lie in the tensor, if that is known."""
        return layout_of(self.owner, self.tensor_name)

    @property
    def has_bias(self) -> bool:
        """Whether its module has a bias that belongs to it by its name."""
        bias = self.tensor_name.replace("weight", "bias")
        return bias != self.tensor_name and self.owner._parameters.get(bias) is not None

    def unsupported(self, estimator: Estimator, memory: Memory) -> str | None:
        """Why this tensor can carry no noise of this kind, with the way out; None where it can."""
        if is_lazy(self.tensor):
            return "is not initialised yet (lazy). Run one batch through the model first."
        if isinstance(self.owner, torch.jit.ScriptModule):
            return "belongs to a ScriptModule. Add noise to the Python module it was made from."
        if isinstance(self.owner, torch.fx.GraphModule):
            return "belongs to the root of a torch.fx.GraphModule, which rewrites its own class. Trace afterwards."
        if is_traceable_wrapper_subclass(self.tensor) and not hasattr(self.tensor, "placements"):
            return f"is packed as {type(self.tensor).__name__}. Add noise before quantising, or leave it clean."
        parallel = is_dtensor(self.tensor) and not is_fully_sharded(self.owner)
        if parallel and (problem := mesh_problem(self.tensor, estimator, memory)):
            return problem
        if self.tensor.layout is not torch.strided:
            return f"has layout {self.tensor.layout}, {NO_LAYOUT}"
        if self.tensor.dtype not in _DTYPES:
            return f"has dtype {self.tensor.dtype}, which cannot carry noise. Leave it clean with None."
        if isinstance(self.owner, (nn.Embedding, nn.EmbeddingBag)) and self.owner.max_norm is not None:
            return "is renormalised in place by max_norm, which noise would lose. Leave it clean with None."
        return None


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Every tensor of the model that could carry noise, in parameter order."""
    candidates: list[Candidate] = []
    matrices: set[tuple[type, str]] = set()
    for node in walk(model):
        stacks = parametrizations(node.module)
        parameters = dict(node.module._parameters.items())  # A ScriptModule has a mapping of its own kind.
        for name in dict.fromkeys([*parameters, *stacks]):
            stack, parameter = stacks.get(name), parameters.get(name)
            tensor = clean_tensor(node.module, name) if parameter is None else parameter
            if tensor is None:
                continue
            names = tuple(prefix + name for prefix in node.prefixes)
            source = stack if parameter is None else parameter
            candidates.append(Candidate(names, node.module, name, tensor, source, _noise_in(stack)))
            if _is_matrix(tensor):
                matrices.add((clean_class(type(node.module)), name))
    # In these a name says nothing.
    matrices -= {(cls, name) for cls, name in matrices if cls in (nn.Module, nn.ParameterList, nn.ParameterDict)}
    alike = {id(one) for one in candidates if (clean_class(type(one.owner)), one.tensor_name) in matrices}
    return [replace(one, has_siblings=True) if id(one) in alike else one for one in candidates]


def common_layout(uses: Sequence[Candidate]) -> Layout | None:
    """The layout in which a draw for all uses of a tensor is made: of those with a bias, which may look at it.

    None where these differ; of the first where there is none.
    """
    layouts = {one.layout for one in uses if one.has_bias} or {uses[0].layout}
    return layouts.pop() if len(layouts) == 1 else None


def _is_matrix(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and sum(size != 1 for size in tensor.shape) > 1


def _noise_in(stack: nn.Module | None) -> WeightNoise | None:
    parts = children(stack).values() if stack is not None else ()
    return next((part for part in parts if isinstance(part, WeightNoise)), None)


def clean_tensor(owner: nn.Module, name: str) -> Tensor | None:
    """The Parameter ``name`` of ``owner``, or what other parametrizations make under that name."""
    stack, parameter = parametrizations(owner).get(name), owner._parameters.get(name)
    if parameter is not None or not isinstance(stack, ParametrizationList) or isinstance(stack, InPlaceList):
        return parameter
    # On a copy: spectral_norm takes a step of its power iteration whenever it is evaluated.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        copied = copy.deepcopy(stack)
        for index, part in reversed(list(enumerate(copied))):
            if isinstance(part, WeightNoise):
                del copied[index]
        made: Tensor = copied()
    return made
