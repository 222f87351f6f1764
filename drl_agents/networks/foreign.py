"""A user's own nn.Module as the network of a policy: `network="package.module:Class"`.

The contract. The constructor takes the length D of a dense observation and the length H of the action head, in this
order, then whatever options it names; one that names `hidden` is offered the spec's. `forward` takes observations
(n, D), market features normalised and the account as it is, and returns the pair (head (n, H), value (n, 1)). The
deviation of Box actions, `log_std`, is the policy's.

P members are P copies, each initialised under its own seed, whose states are stacked and run as one by
`torch.vmap` over `torch.func.functional_call` (https://docs.pytorch.org/tutorials/intermediate/ensembling.html). That
asks for a function of the weights and of each observation by itself: what keeps statistics of a batch (BatchNorm),
draws random numbers (Dropout) or cannot be differentiated is refused when the policy is built, with the reason.

A saved policy names the class and holds its weights. To load it is to import that module: code of the installation, as
with an environment of that kind; nothing in the file is run.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from drl_agents.networks.distributions import distribution_for
from drl_agents.networks.normalizer import FixedNormalizer, MarketWindows, state_normalizer
from drl_agents.networks.policy import ActorCritic, spread
from drl_agents.networks.population import member_generators
from drl_agents.networks.quantile import QuantileNormalizer
from drl_agents.networks.spec import PolicySpec
from environments.errors import InputError

TRIED = 5  # observations a module is tried on
TOLERANCE = 1e-4  # of float32 results that should be the same


class ForeignPolicy(ActorCritic):
    """`ActorCritic` around P copies of a user's module. It has no market part of its own: windows are embedded as they
    are, and the module reads them beside the account.

    Args:
        modules: one per member, alike but for their weights.
    """

    # What `heads` and `outputs` can be asked for alone, in place of the two networks.
    actor, critic = "head", "value"
    why_uncompiled = "torch cannot compile the gradient of a user's module under torch.vmap"

    def __init__(self, spec: PolicySpec, modules: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)
        self.spec, self.n_members = spec, len(modules)
        self.distribution = distribution_for(spec.action_space, spec.distribution)
        self.encoder = None
        parameters, buffers = stack_module_state(list(modules))
        self.members = _tree(parameters, buffers)
        # In a list, so that it is no part of this module: it gives the computation, its weights are always handed in.
        self._plan = [copy.deepcopy(modules[0]).to("meta")]
        self.log_std = (
            nn.Parameter(torch.full((self.n_members, 1, spec.action_size), spec.log_std))
            if self.distribution.has_log_std
            else None
        )
        kind = QuantileNormalizer if spec.normalizer == "quantile" else FixedNormalizer
        self.row_normalizer = kind(self.n_members, spec.row_size) if spec.row_size else None
        self.state_normalizer = (
            None if spec.row_size else state_normalizer(spec.normalizer, self.n_members, spec.state_size)
        )
        self._windows: MarketWindows | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: module.forget())

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (P, n, D) -> heads (P, n, H), values (P, n, 1), in float32."""
        state = {**dict(self.members.named_parameters()), **dict(self.members.named_buffers())}
        (plan,) = self._plan
        head, value = torch.vmap(lambda own, seen: functional_call(plan, own, (seen,)))(state, x)
        return head.float(), value.float()

    def embed(self, windows: Tensor, *nets: str) -> Tensor:
        """Normalised market windows (P, m, L * R) as they are."""
        return windows

    def heads(self, market: Tensor | None, state: Tensor, *nets: str) -> list[Tensor]:
        """Of windows (P, m, L * R), each serving n / m samples, or None, and accounts (P, n, K): the heads (P, n, H)
        and values (P, n, 1), or what `nets` names of them."""
        if market is None:
            x = self.state_normalizer(state)
        else:
            if market.shape[1] != state.shape[1]:
                market = spread(market, state.shape[1] // market.shape[1])
            x = torch.cat([market, state.to(market.dtype)], dim=-1)
        found = dict(zip((self.actor, self.critic), self.run(x), strict=True))
        return [found[name] for name in nets or found]

    def outputs(self, windows: Tensor | None, state: Tensor, *nets: str, where: Tensor | None = None) -> list[Tensor]:
        if where is not None:
            windows = windows.gather(1, where.unsqueeze(-1).expand(-1, -1, windows.shape[-1]))
        return self.heads(windows, state, *nets)


def foreign_policy(spec: PolicySpec, seeds: Sequence[int]) -> ForeignPolicy:
    """The policy around the class that `spec.network` names, one copy per seed.

    Raises:
        InputError: there is no such class, its constructor does not take what it is given, or the module does not keep
            the contract; the message says which part of it.
    """
    if not spec.value:
        raise InputError(f"network {spec.network!r}: accepted with agents that learn a value of states, such as ppo")
    if spec.per_asset or spec.layer_norm:
        raise InputError(f"network {spec.network!r}: per_asset and layer_norm are of the built-in networks")
    make = _constructor(spec)
    modules = []
    for generator in member_generators(seeds, stream=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            modules.append(make())
    _check_module(spec, modules[0])
    try:
        policy = ForeignPolicy(spec, modules)
        x = _observations(spec)
        with torch.no_grad():
            alone, together = modules[0](x), policy.run(x.expand(len(modules), -1, -1))
    except Exception as error:  # whatever it is, it is the module's
        raise _refused(spec, f"torch.vmap cannot run it: {_line(error)}") from error
    _check_same(spec, alone, [own[0] for own in together], "run by torch.vmap it gives other results than by itself")
    return policy


def find_class(name: str) -> type[nn.Module]:
    """The class "package.module:Class".

    Raises:
        InputError: it cannot be imported, or is no nn.Module.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"network {name!r}: {_line(error)}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"network {name!r}: a class derived from torch.nn.Module is accepted")
    return found


def _constructor(spec: PolicySpec) -> Callable[[], nn.Module]:
    kind = find_class(spec.network)
    parameters = inspect.signature(kind).parameters
    options = {"hidden": spec.hidden, **spec.options} if "hidden" in parameters else dict(spec.options)
    sizes = spec.size, distribution_for(spec.action_space, spec.distribution).head_size
    try:
        inspect.signature(kind).bind(*sizes, **options)
    except TypeError as error:
        accepted = ", ".join(list(parameters)[2:]) or "none"
        raise _refused(
            spec,
            f"its constructor is given (observation_size, action_head_size): {error}; options it names: {accepted}",
        ) from error
    return lambda: kind(*sizes, **options)


def _check_module(spec: PolicySpec, module: nn.Module) -> None:
    """Raises InputError where the module does not keep the contract of this file."""
    named = dict(module.named_parameters())
    if not named:
        raise _refused(spec, "it has no parameters to train")
    if odd := [name for name, own in named.items() if own.dtype != torch.float32 or not own.requires_grad]:
        raise _refused(spec, f"parameter {odd[0]} is not a float32 that requires a gradient")
    x, buffers = _observations(spec), {name: own.clone() for name, own in module.named_buffers()}
    first = _tried(spec, module, x)
    if changed := [name for name, own in module.named_buffers() if not torch.equal(own, buffers[name])]:
        raise _refused(
            spec, f"buffer {changed[0]} changes when it runs (a BatchNorm's statistics?); LayerNorm is accepted"
        )
    gradients = torch.autograd.grad(sum(out.sum() for out in first), list(named.values()), allow_unused=True)
    if unused := [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]:
        raise _refused(spec, f"no gradient reaches its parameter {unused[0]}")
    _check_same(spec, first, _tried(spec, module, x), "it gives other results when it is run again (Dropout?)")
    rows = zip(*(_tried(spec, module, row) for row in x.split(1)), strict=True)
    _check_same(spec, first, [torch.cat(own) for own in rows], "an observation's result depends on the others")
    judged = _tried(spec, copy.deepcopy(module).eval(), x)
    _check_same(spec, first, judged, "it gives other results in evaluation, after .eval()")


def _check_same(spec: PolicySpec, first: Sequence[Tensor], other: Sequence[Tensor], why: str) -> None:
    if not all(torch.allclose(a, b, atol=TOLERANCE) for a, b in zip(first, other, strict=True)):
        raise _refused(spec, why)


def _tried(spec: PolicySpec, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(head, value) of observations (n, D); raises InputError where they are not what the contract says."""
    try:
        out = module(x)
    except Exception as error:  # whatever it is, it is the module's
        raise _refused(spec, f"it fails on observations {tuple(x.shape)}: {_line(error)}") from error
    if not (isinstance(out, tuple | list) and len(out) == 2 and all(isinstance(own, Tensor) for own in out)):
        raise _refused(spec, f"forward gives {type(out).__name__}, accepted is the pair (head, value) of tensors")
    head, value = out
    accepted = (len(x), distribution_for(spec.action_space, spec.distribution).head_size), (len(x), 1)
    if (found := (tuple(head.shape), tuple(value.shape))) != accepted:
        shown, wanted = (f"{one} and {other}" for one, other in (found, accepted))
        raise _refused(spec, f"of {len(x)} observations forward gives shapes {shown}, accepted are {wanted}")
    if not all(own.dtype.is_floating_point and own.requires_grad and own.isfinite().all() for own in out):
        raise _refused(spec, "forward gives what is not finite or cannot be differentiated")
    return head, value


def _observations(spec: PolicySpec) -> Tensor:
    return torch.randn(TRIED, spec.size, generator=torch.Generator().manual_seed(0))


def _tree(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
    """A module that holds stacked tensors under their dotted names, so that weights are saved under the user's."""
    root = nn.Module()
    for tensors, keep in ((parameters, True), (buffers, False)):
        for name, tensor in tensors.items():
            node, (*path, leaf) = root, name.split(".")
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node._modules[part]
            value = tensor.detach().clone()
            node.register_parameter(leaf, nn.Parameter(value)) if keep else node.register_buffer(leaf, value)
    return root


def _refused(spec: PolicySpec, why: str) -> InputError:
    return InputError(f"network {spec.network!r}: {why}")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
