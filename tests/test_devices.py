"Devices without a device: tensors that say they are on a GPU, and note where the host would wait."

import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from see_nb.baselines.mining import Mined
from see_nb.baselines.registry import EXPANSIONS, LOSSES, build_expansion, build_loss, build_miner
from see_nb.method.see_loss import SEELoss
from see_nb.baselines.mining import asking

C, D, N_FEATURES = 6, 16, 20
GPU = torch.device("cuda:0")
WAITS = {
    "item",
    "tolist",
    "nonzero",
    "cpu",
    "numpy",
    "unique",
    "masked_select",
    "equal",
    "__bool__",
}
WAITS |= {"__int__", "__float__", "__index__", "argwhere", "allclose"}


class OnDevice(torch.Tensor):
    "A tensor that says it is on a GPU. Its numbers are here, so shapes may depend on them."


class Device(TorchFunctionMode):
    "Refuses tensors of two devices in one operation, and notes what the host would wait for."

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [isinstance(t, OnDevice) for t in tensors]
        if function == torch.Tensor.device.__get__:
            return GPU if there[0] else torch.device("cpu")
        if name == "__deepcopy__" and there[0]:
            return on_device(args[0])
        asked = (*args[1:2], kwargs.get("device")) if name == "to" else (kwargs.get("device"),)
        asked = [torch.device(d) for d in asked if isinstance(d, (str, torch.device))]
        self.check(name, tensors, there, args)
        args, kwargs = tree_map(lambda a: "cpu" if a == GPU else a, (args, kwargs))
        if isinstance(kwargs.get("device"), torch.device):
            kwargs["device"] = "cpu"
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        like = [isinstance(kwargs.get("tensor"), OnDevice)]
        on_gpu = asked[0].type == "cuda" if asked else any(there or like) and name != "cpu"

        def settle(t):
            if not isinstance(t, torch.Tensor) or isinstance(t, OnDevice) == on_gpu:
                return t
            return t.as_subclass(OnDevice if on_gpu else torch.Tensor)

        return tree_map(settle, result) if not name.startswith("__set") else result

    def check(self, name, tensors, there, args):
        wide = [here for here, t in zip(there, tensors) if t.ndim]
        indexed = name in ("__getitem__", "__setitem__") and there[0]  # by numbers from the host
        if len(set(wide)) > 1 and name not in ("to", "copy_", "__deepcopy__") and not indexed:
            raise AssertionError(f"{name} mixes devices")
        by_mask = name == "__getitem__" and any(t.dtype == torch.bool for t in tensors[1:])
        if any(there) and (name in WAITS or by_mask or (name == "where" and len(args) == 1)):
            files = [frame.filename for frame in traceback.extract_stack()]
            self.waits.append(
                (name, [file for file in files if "see_nb" in file or "metric" in file])
            )


def on_device(x):
    return x.detach().clone().as_subclass(OnDevice)


def move(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(on_device(p), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else on_device(b)
    return module


class Head(nn.Linear):
    def forward(self, x):
        return F.normalize(super().forward(x), dim=-1)


def step(name: str, see: bool, expansion: str = "see", **options) -> Device:
    "One forward of a loss on the device; what the host waited for."
    torch.manual_seed(0)
    inner, miner = build_loss(name, C, D, N_FEATURES), build_miner(name)
    loss = Mined(inner, miner) if miner else inner
    features, labels = torch.randn(24, N_FEATURES), torch.arange(C).repeat_interleave(4)
    head = Head(N_FEATURES, D)
    for part in asking(loss, "training set"):
        part.refresh(head(features).detach(), labels, features)
    if see:
        way = build_expansion(expansion, C, D, N_FEATURES)
        loss = SEELoss(loss, 4, expansion=way, **options)
    loss, head, device = move(loss), move(head), Device()
    with device:
        features, labels = on_device(features), on_device(labels)
        for part in asking(loss, "features"):
            part.take(features, head)
        value = loss(head(features), labels)
        assert isinstance(value, OnDevice) and value.device == GPU
    assert value.as_subclass(torch.Tensor).isfinite()
    return device


def of_see(waits) -> list[str]:
    "Those that SEE itself asks for, none that a loss or a miner asks for when it is called."
    inside = ("pytorch_metric_learning", "see_nb/baselines")
    return [name for name, files in waits if not any(i in file for file in files for i in inside)]


PROXIES = {"one proxy per class", "several proxies per class"}


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"log_ratio"}))  # SEE has no place there
def test_see_mixes_no_devices_and_makes_the_host_wait_for_nothing_of_its_own(name):
    alone, both = step(name, see=False), step(name, see=True)
    extra = of_see(both.waits)[len(of_see(alone.waits)) :]
    if LOSSES[name].kind in PROXIES:
        assert extra == [] and len(both.waits) <= 2 * len(alone.waits)
    else:  # one wait: how many sources have a centre
        assert extra == ["__getitem__"]


@pytest.mark.parametrize("name", sorted(EXPANSIONS))
def test_ways_of_making_synthetics_mix_no_devices(name):
    options = {"encoder_grad": True} if name != "closed_form" else {"encoder_grad": False}
    alone, both = step("proxy_anchor", False), step("proxy_anchor", True, name, **options)
    assert of_see(both.waits) == of_see(alone.waits)


def test_a_mixture_of_devices_is_noticed():
    with Device() as device, pytest.raises(AssertionError, match="mixes devices"):
        on_device(torch.ones(2)) + torch.ones(2)
    with device:
        assert torch.arange(3, device=GPU).sum().item() == 3
    assert [name for name, _ in device.waits] == ["item"]
