"SEE in the loops that people have: a validation, a stop or gradient checkpointing changes nothing."

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pytorch_metric_learning import losses, miners, trainers
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from see_nb.baselines.registry import build_loss
from see_nb.errors import SeeError
from see_nb.method.curriculum import ExpansionSchedule
from see_nb.method.running_means import RunningMeans
from see_nb.method.see_loss import SEELoss

C, D, STEPS, EPOCHS, MIDDLE = 6, 12, 4, 4, 10
KINDS = {
    "proxies": lambda **o: SEELoss.as_published(losses.ProxyAnchorLoss(C, D), EPOCHS, **o),
    "encoder": lambda **o: SEELoss(
        losses.ArcFaceLoss(C, D), 4, schedule=ExpansionSchedule(EPOCHS), encoder_grad=True, **o
    ),
    "pairs": lambda **o: SEELoss(losses.ContrastiveLoss(), 4, **o),
    "running means": lambda **o: SEELoss(losses.NTXentLoss(), 4, centers=RunningMeans(C, D), **o),
    "memory": lambda **o: SEELoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), D, 64), 4, **o),
    "miner": lambda **o: SEELoss(
        losses.TripletMarginLoss(), 4, miner=miners.MultiSimilarityMiner(), **o
    ),
}
own_generator = pytest.mark.parametrize("own", [False, True])


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(set_epoch|SEE).*")
        yield


def images(n=STEPS, seed=0):
    "Batches of points of six classes."
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(C).repeat_interleave(4)
    centres = torch.randn(C, 20, generator=torch.Generator().manual_seed(9))[labels]
    return [(centres + 0.5 * torch.randn(24, 20, generator=generator), labels) for _ in range(n)]


def parts(kind, own=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, D))
    see = KINDS[kind](generator=torch.Generator().manual_seed(1) if own else None)
    rows = [*model.parameters(), *see.parameters()]
    return model, see, torch.optim.Adam(rows, lr=1e-2)


def validate(model, see):
    "A loss of validation images, as many loops log it."
    model.eval(), see.eval()
    with torch.no_grad():
        values = [see(model(x), y) for x, y in images(2, seed=5)]
        again = [see(model(x), y) for x, y in images(2, seed=5)]
    model.train(), see.train()
    assert "CrossBatchMemory" in str(see) or torch.equal(*map(torch.stack, (values, again)))


class Kept(nn.Module):
    "A loss under gradient checkpointing."

    def __init__(self, see):
        super().__init__()
        self.see = see

    def forward(self, embeddings, labels, *_):
        return checkpoint(self.see, embeddings, labels, use_reentrant=False)


class Loop:
    "A training by hand; `how` it goes: plain, validated, stopped in an epoch or checkpointed."

    def __init__(self, kind, how, folder=None, own=True, whole=lambda f, *batch: f(*batch)):
        self.kind, self.how, self.folder, self.own, self.whole = kind, how, folder, own, whole
        self.begin()
        self.values = [self.step(number) for number in range(STEPS * EPOCHS)]

    def begin(self):
        self.model, self.see, self.optimizer = parts(self.kind, self.own)
        self.loss = Kept(self.see) if self.how == "checkpointed" else self.see

    def step(self, number):
        if number % STEPS == 0:
            if self.how == "validated":  # before the first epoch too, as Lightning does
                validate(self.model, self.see)
            self.see.set_epoch(number // STEPS)
        if self.how == "stopped" and number == MIDDLE:
            self.stop()
        x, y = images()[number % STEPS]
        value = self.whole(lambda x, y: self.loss(self.model(x), y), x, y)
        self.optimizer.zero_grad()
        self.backward(value)
        self.optimizer.step()
        return value.item()

    def backward(self, value):
        value.backward()

    def stop(self):
        "All is written, made anew, and read."
        whole, frames = (self.model, self.see, self.optimizer), self.see.generator.get_state()
        kept = copy.deepcopy([part.state_dict() for part in whole])
        self.begin()
        for part, state in zip((self.model, self.see, self.optimizer), kept):
            part.load_state_dict(state)
        self.see.generator.set_state(frames)


class Accelerated(Loop):
    def begin(self):
        super().begin()
        self.accelerator = Accelerator(cpu=True)
        whole = self.accelerator.prepare(self.model, self.see, self.optimizer)
        self.model, self.see, self.optimizer = whole

    def backward(self, value):
        self.accelerator.backward(value)

    def stop(self):
        self.accelerator.save_state(self.folder)
        frames = self.see.generator.get_state()
        self.begin()
        self.accelerator.load_state(self.folder)
        self.see.generator.set_state(frames)


class Library:
    "The trainer of pytorch-metric-learning. Its epochs are half ones, so that it stops in one."

    def __init__(self, kind, how, folder):
        self.kind, self.how, self.values = kind, how, []
        self.begin()
        last = 2 * EPOCHS
        self.train(1, MIDDLE // 2 if how == "stopped" else last)
        if how == "stopped":
            Loop.stop(self)
            self.train(MIDDLE // 2 + 1, last)

    def begin(self):
        self.model, self.see, self.optimizer = parts(self.kind)

    def train(self, first, last):
        x, y = images(1)[0]

        def end_of_epoch(trainer):
            if self.how == "validated":
                validate(self.model, self.see)
            self.see.set_epoch(trainer.epoch // 2)

        self.see.set_epoch((first - 1) // 2)
        trainers.MetricLossOnly(
            models={"trunk": self.model},
            optimizers={"trunk_optimizer": self.optimizer},
            batch_size=len(y),
            loss_funcs={"metric_loss": Kept(self.see) if self.how == "checkpointed" else self.see},
            dataset=TensorDataset(x, y),
            sampler=SequentialSampler(y),
            iterations_per_epoch=STEPS // 2,
            dataloader_num_workers=0,
            end_of_iteration_hook=lambda t: self.values.append(t.losses["metric_loss"].item()),
            end_of_epoch_hook=end_of_epoch,
        ).train(first, last)


class Lightning:
    def __init__(self, kind, how, folder):
        # the same batch at each step: where a loader goes on is not SEE's affair
        x, y = (torch.cat(part) for part in zip(*images(1) * STEPS))
        self.loader, self.folder = DataLoader(TensorDataset(x, y), 24), folder
        self.values = self.fit(kind, how)
        if how == "stopped":
            again = self.fit(kind, how, folder / f"step={MIDDLE}.ckpt")
            self.values = self.values[:MIDDLE] + again

    def fit(self, kind, how, resume=None):
        L = pytest.importorskip("lightning", reason="lightning is not installed")

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model, self.see, _ = parts(kind)
                self.loss = Kept(self.see) if how == "checkpointed" else self.see
                self.values = []

            def on_train_epoch_start(self):
                self.see.set_epoch(self.current_epoch)

            def training_step(self, batch, _):
                value = self.loss(self.model(batch[0]), batch[1])
                self.values.append(value.item())
                return value

            def validation_step(self, batch, _):
                self.log("validation", self.see(self.model(batch[0]), batch[1]))

            def configure_optimizers(self):
                return torch.optim.Adam([*self.model.parameters(), *self.see.parameters()], 1e-2)

            def on_save_checkpoint(self, kept):
                kept["frames"] = self.see.generator.get_state()

            def on_load_checkpoint(self, kept):
                self.see.generator.set_state(kept["frames"])

        inside = L.pytorch.callbacks.ModelCheckpoint(
            self.folder, "{step}", every_n_train_steps=MIDDLE, save_top_k=1, monitor=None
        )
        saves = how == "stopped" and not resume
        options = {"callbacks": [inside]} if saves else {"enable_checkpointing": False}
        options |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options |= {"accelerator": "cpu", "limit_val_batches": 1.0 if how == "validated" else 0}
        module, seen = Module(), self.loader if how == "validated" else None
        L.Trainer(max_epochs=EPOCHS, **options).fit(module, self.loader, seen, ckpt_path=resume)
        return module.values


@pytest.mark.parametrize("trainer", [Loop, Accelerated, Library, Lightning])
@pytest.mark.parametrize("kind", ["proxies", "pairs", "running means", "miner"])
def test_nothing_that_happens_to_a_training_changes_it(trainer, kind, tmp_path):
    plain = trainer(kind, "plain", tmp_path).values
    assert len(plain) == STEPS * EPOCHS
    for how in ("validated", "stopped"):
        assert trainer(kind, how, tmp_path).values == plain, how
    torch.testing.assert_close(trainer(kind, "checkpointed", tmp_path).values, plain)


@pytest.mark.parametrize("kind", ["proxies", "encoder", "pairs", "running means", "miner"])
@own_generator
def test_a_validation_changes_nothing_in_a_bare_loop(kind, own):
    plain, validated = (Loop(kind, how, own=own) for how in ("plain", "validated"))
    assert plain.values == validated.values and plain.see.n_expanded == validated.see.n_expanded


@pytest.mark.parametrize("kind", ["proxies", "encoder", "pairs", "miner"])
@own_generator
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_a_whole_step_changes_nothing(kind, own, reentrant):
    def kept(f, x, y):
        return checkpoint(f, x.requires_grad_(), y, use_reentrant=reentrant)

    plain, again = Loop(kind, "plain", own=own), Loop(kind, "plain", own=own, whole=kept)
    assert plain.see.n_expanded == again.see.n_expanded
    torch.testing.assert_close(plain.values, again.values, rtol=1e-5, atol=1e-6)


LABELS = {  # in how many forms they come: as given, and as the checkpointed function makes them
    "of two views": (lambda y: y, lambda y: y),
    "apart": (torch.clone, lambda y: y),
    "short": (torch.Tensor.int, lambda y: y),
    "a list": (torch.Tensor.tolist, lambda y: y),
    "numpy": (torch.Tensor.numpy, lambda y: y),
    "made inside": (lambda y: y, torch.clone),
    "a column": (lambda y: y.clone()[:, None], lambda y: y.view(-1)),
}


@own_generator
@pytest.mark.parametrize("form", LABELS)
def test_batches_that_are_checkpointed_together_keep_their_own_draws(own, form):
    outside, inside = LABELS[form]

    def gradient(kept):
        model, see, _ = parts("encoder", own)
        see.set_epoch(5)
        torch.manual_seed(3)
        call = lambda x, y: see(model(x), inside(y))
        whole = (lambda *batch: checkpoint(call, *batch, use_reentrant=False)) if kept else call
        batches = [(x, outside(y)) for x, y in images(3)]
        value = sum(whole(x, y) for x, y in batches)
        value.backward()
        after = torch.rand(3, generator=see.generator)
        return [p.grad for p in (*model.parameters(), *see.parameters())] + [after]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_losses_that_are_compiled_whole():
    class Anchors(nn.Module):
        def __init__(self):
            super().__init__()
            self.proxies = nn.Parameter(torch.randn(C, D))

        def forward(self, x, y):
            cosines = F.normalize(x, dim=-1) @ F.normalize(self.proxies, dim=-1).T
            return F.cross_entropy(9 * cosines, y)

    torch.manual_seed(0)
    see = SEELoss(Anchors(), 4, place="own", encoder_grad=True)
    compiled = torch.compile(see, fullgraph=True, backend="eager")
    for x, y in images(3):
        x = x[:, :D].clone().requires_grad_()
        torch.manual_seed(1)
        (slope,) = torch.autograd.grad(see(x, y), x)
        torch.manual_seed(1)
        (same,) = torch.autograd.grad(compiled(x, y), x)
        torch.testing.assert_close(same, slope)


@pytest.mark.parametrize("name", ["margin", "htl", "hard_proxies", "arcface"])
def test_labels_beyond_the_classes_are_told(name):
    see = SEELoss(build_loss(name, C, D), 4)
    x, y = images(1)[0]
    for wrong in (y + 1, y - 1, y + 4_102_000_000):
        with pytest.raises(SeeError, match="labels: expected classes 0 to 5"):
            see(x[:, :D], wrong)


def test_further_arguments_and_attributes_are_the_losss():
    x, y = images(1)[0]
    mask = torch.arange(24) >= 12
    memory, alone = (losses.CrossBatchMemory(losses.NTXentLoss(), D, 64) for _ in range(2))
    alone(x[:, :D], y, enqueue_mask=mask)
    SEELoss(memory, 4)(x[:, :D], y, enqueue_mask=mask)
    assert memory.queue_idx == alone.queue_idx == 12
    see = SEELoss(losses.ArcFaceLoss(C, D), 4)
    assert see.W is see.loss.W and see.num_classes == C
    with pytest.raises(AttributeError, match=r"nor has the ArcFaceLoss in its \.loss"):
        see.nothing  # noqa: B018
