"Devices without a device: tensors that say they are on a GPU, and note where the host would wait."

import traceback
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from test_gpu import PLAN
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from see_nb.baselines.mining import Mined, asking
from see_nb.baselines.registry import EXPANSIONS, LOSSES, build_expansion, build_loss, build_miner
from see_nb.data.datasets import RetrievalDataset
from see_nb.experiments.gpu import all_checks, check_table, gpu_evidence, whole_table
from see_nb.method import expansion, see_loss
from see_nb.method.see_loss import SEELoss
from see_nb.retrieval.embedding import evaluate
from see_nb.training.recipes import Recipe
from see_nb.training.results import read_rows
from see_nb.training.run import Run, empty_model, make_objective
from see_nb.training.splits import Splits
from see_nb.training.training import Output, Training, make_row, run_epochs

C, D, N_FEATURES = 6, 16, 20
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
NUMBERS = {"item", "tolist", "numpy", "equal", "allclose"}
NUMBERS |= {"__bool__", "__int__", "__float__", "__index__", "__format__"}
SHAPES = {"nonzero", "argwhere", "unique", "masked_select", "bincount"}
CHECKED = {"linalg_cholesky", "linalg_inv", "linalg_solve", "linalg_eigh"}  # the host is told
WAITS = NUMBERS | SHAPES | CHECKED
MOVES = {"to", "cpu", "cuda", "copy_", "__deepcopy__"}


class OnDevice(torch.Tensor):
    "A tensor that says it is on a GPU. Its numbers are here, so shapes may depend on them."


class Generator(torch.Generator):
    "It says that it is where it was asked to be."

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = GPU if torch.device(device).type == "cuda" else CPU
        return made

    device = property(lambda self: self.place)


def on_device(x):
    return x.detach().clone().as_subclass(OnDevice)


def to_device(module: nn.Module, *_, **__) -> nn.Module:
    "In place of `nn.Module.to`; what is there already stays the same object."
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and not isinstance(p, OnDevice):
                part._parameters[name] = nn.Parameter(on_device(p), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None and not isinstance(b, OnDevice):
                part._buffers[name] = on_device(b)
    return module


def is_device(value) -> bool:
    named = isinstance(value, str) and value.startswith(("cuda", "cpu"))
    return named or isinstance(value, torch.device)


class Device(TorchFunctionMode):
    "Refuses tensors of two devices in one operation, and notes what the host would wait for."

    def __init__(self):
        super().__init__()
        self.loud, self.waits = False, []  # whether a wait warns; name, files on the way to it

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        given = args[:1] if name == "__deepcopy__" else (args, kwargs)  # without the memo
        tensors = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
        there = [isinstance(t, OnDevice) for t in tensors]
        if function is torch.device:
            return function(*args, **kwargs)
        if function == torch.Tensor.device.__get__:
            return GPU if there[0] else CPU
        if function == torch.Tensor.is_cuda.__get__:
            return there[0]
        if name == "pin_memory":
            assert not there[0], "only tensors of the host can be pinned"
            return args[0]
        if name == "__deepcopy__" and there[0]:
            return on_device(args[0]).requires_grad_(args[0].requires_grad)
        place = self.place(name, args, kwargs, there)
        self.check(name, args, kwargs, tensors, there, place)
        if name == "to" and there == [True] and GPU in [*args[1:2], kwargs.get("device")]:
            return args[0]
        args, kwargs = tree_map(lambda a: "cpu" if is_device(a) else a, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)

        def settle(t):
            if not isinstance(t, torch.Tensor) or isinstance(t, OnDevice) == (place == GPU):
                return t
            return t.as_subclass(OnDevice if place == GPU else torch.Tensor)

        return result if name.startswith("__set") else tree_map(settle, result)

    def place(self, name, args, kwargs, there) -> torch.device:
        "Where the result is."
        asked = [a for a in (kwargs.get("device"), *args[1:2]) if is_device(a)]
        if asked and (name == "to" or "device" in kwargs):
            return GPU if torch.device(asked[0]).type == "cuda" else CPU
        if name in ("cpu", "numpy"):
            return CPU
        if name in ("copy_", "to") and len(there) > 1:  # into, or as, another tensor
            return GPU if there[name == "to"] else CPU
        return GPU if any(there) or isinstance(kwargs.get("tensor"), OnDevice) else CPU

    def check(self, name, args, kwargs, tensors, there, place):
        "One device for all that are more than a single number; waits are noted."
        wide = {here for here, t in zip(there, tensors) if t.ndim}
        indexed = name in ("__getitem__", "__setitem__") and there[0]  # by numbers of the host
        if len(wide) > 1 and name not in MOVES and not indexed:
            raise AssertionError(f"{name} mixes devices")
        made, generator = not tensors and place == GPU, kwargs.get("generator")
        if made and generator is not None and generator.device != GPU:
            raise AssertionError(f"{name} mixes devices: its generator is elsewhere")
        crossed = name in MOVES and {*there, place == GPU} == {True, False}
        crossed = crossed and not kwargs.get("non_blocking")
        index = [a for a in tree_leaves(args[1:]) if indexed and isinstance(a, torch.Tensor)]
        chosen = any(a.dtype == torch.bool or not isinstance(a, OnDevice) for a in index)
        unknown = name == "repeat_interleave" and len(tensors) > 1 and "output_size" not in kwargs
        unknown |= name in ("where", "one_hot") and len(args) + len(kwargs) == 1
        copied = made and name in ("tensor", "as_tensor")
        if crossed or copied or any(there) and (name in WAITS or chosen or unknown):
            if self.loud:
                warnings.warn(f"called a synchronizing operation: {name}", stacklevel=2)
            files = [frame.filename for frame in traceback.extract_stack()]
            self.waits.append((name, [f for f in files if "see_nb" in f or "metric" in f]))


pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")  # none without a driver


@pytest.fixture
def cuda(monkeypatch):
    "A machine with that device: waits warn as torch's do."
    mode = Device()
    answers = dict.fromkeys(("synchronize", "set_device"))
    answers |= {"manual_seed_all": None, "is_available": True, "is_bf16_supported": True}
    answers |= {"get_device_name": "a GPU"}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    loud = lambda wanted: setattr(mode, "loud", wanted == "warn")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", loud)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # no pinned memory
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(nn.Module, "to", to_device)
    monkeypatch.setattr(Accelerator, "device", GPU)
    return mode


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
        loss = SEELoss(loss, 4, expansion=way, generator=Generator("cuda"), **options)
    loss, head, device = to_device(loss), to_device(head), Device()
    features, labels = on_device(features), on_device(labels)
    with device:
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


SMALL = Recipe(
    backbone="test_convnext",
    embedding_size=D,
    image_size=32,
    batch_size=12,
    epochs=1,
    curriculum="constant",
)
SETTINGS = {  # what learns how -> fields of the recipe
    "as published": {"see": True},
    "with the encoder": {"see": True, "encoder_grad": True},
    "closed form": {"see": True, "expansion": "closed_form"},
}


def photos(n_classes: int, seed: int, gallery=None) -> RetrievalDataset:
    "Six noisy photos of each class."
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(n_classes)
    labels = labels.repeat_interleave(6)
    classes = torch.randint(0, 192, (n_classes, 3, 32, 32), generator=generator)
    images = classes[labels] + torch.randint(0, 64, (len(labels), 3, 32, 32), generator=generator)
    names = [str(c) for c in range(n_classes)]
    return RetrievalDataset(images.to(torch.uint8), labels, names, gallery=gallery)


def trained_on(device: Device, recipe: Recipe) -> list[tuple[str, str]]:
    "A training with validation, its row, and an evaluation of its own; where the host waited."
    accelerator = Accelerator(cpu=True)
    test_set = photos(4, 1, gallery=photos(4, 1))
    model = empty_model(recipe, 3, pretrained=False).to(accelerator.device)
    objective = make_objective(recipe, 8, model.n_features).to(accelerator.device)
    splits = Splits(photos(8, 0), test_set, photos(3, 2))
    with device:
        training = Training(Run(recipe, model, objective, [], {}), splits, accelerator, 0)
        run_epochs(training, Output(None, None), progress=False)
        row = make_row(training, "")
        again = evaluate(training.model, test_set, image_size=recipe.image_size)
    assert training.n_expanded == (4 * 5 if recipe.see else 0)  # steps, 40 % of 12
    assert row["recall_at_1"] == again["recall_at_1"] and row["map_at_r"] == again["map_at_r"]
    assert all(isinstance(p, OnDevice) for p in model.parameters())
    return [(name, files[-1].rpartition("/")[2]) for name, files in device.waits]


def test_training_and_evaluation_mix_no_devices_and_see_adds_no_wait(cuda):
    alone = Counter(trained_on(cuda, replace(SMALL, see=False)))
    assert alone.keys() >= {("where", "proxy_anchor_loss.py"), ("cpu", "embedding.py")}
    for setting in SETTINGS.values():
        assert Counter(trained_on(Device(), replace(SMALL, **setting))) == alone, setting


def test_gpu_evidence_mixes_no_devices(cuda, tiny, tmp_path):
    path, plan = tmp_path / "gpu.jsonl", replace(PLAN, whole=replace(PLAN.whole, seeds=1))
    with cuda:
        assert gpu_evidence(path, device="cuda", plan=plan)
    rows = read_rows(path)
    assert "failed" not in rows
    table = check_table(rows)
    assert table.check.tolist() == list(all_checks(plan, "cuda"))
    assert table.verdict.tolist()[:3] == ["met"] * 3  # the waits of SEE
    assert (rows[rows.what == "waits"].base_value > 0).all() and len(whole_table(rows)) == 3


def test_a_wait_and_a_mixture_of_devices_are_noticed(monkeypatch, cuda):
    closest, simplex = see_loss.select_closest, expansion.mmd_centers
    waits = lambda similarity, share: closest(similarity, max(share, similarity[0].item()))
    monkeypatch.setattr(see_loss, "select_closest", waits)
    assert of_see(step("arcface", see=True).waits) == ["item"]
    monkeypatch.setattr(expansion, "mmd_centers", lambda n, dtype, device: simplex(n, dtype=dtype))
    with pytest.raises(AssertionError, match="mixes devices"):
        step("arcface", see=True)
