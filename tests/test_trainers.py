"SEE in the loops that people have: a validation, a stop or gradient checkpointing changes nothing."

import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pytorch_metric_learning import losses, miners, trainers
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from see_nb.baselines.registry import build_loss
from see_nb.errors import SeeError
from see_nb.method.curriculum import ExpansionSchedule
from see_nb.method.running_means import RunningMeans
from see_nb.method.see_loss import SEELoss

C, D, STEPS, EPOCHS, MIDDLE = 6, 12, 4, 6, 10
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
every_kind = pytest.mark.parametrize("kind", KINDS)
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


def bare(kind, own, validated=False, wrap=lambda f, *batch: f(*batch), epochs=range(EPOCHS)):
    model, see, optimizer = parts(kind, own)
    if validated:
        validate(model, see)  # before the first epoch, as Lightning does
    values = []
    for epoch in epochs:
        see.set_epoch(epoch)
        for x, y in images():
            value = wrap(lambda x, y: see(model(x), y), x, y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        if validated:
            validate(model, see)
    return values, see.n_expanded


@every_kind
@own_generator
def test_a_validation_changes_nothing_in_a_bare_loop(kind, own):
    if kind == "memory":
        pytest.skip("the library's memory takes in validation images, alone too")
    assert bare(kind, own) == bare(kind, own, validated=True)


@pytest.mark.parametrize("kind", ["proxies", "encoder", "pairs", "miner"])
@own_generator
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(kind, own, reentrant):
    def kept(f, x, y):
        return checkpoint(f, x.requires_grad_(), y, use_reentrant=reentrant)

    plain, again = bare(kind, own), bare(kind, own, wrap=kept)
    assert plain[1] == again[1]
    torch.testing.assert_close(plain[0], again[0], rtol=1e-5, atol=1e-6)


@own_generator
@pytest.mark.parametrize("same", [False, True])  # labels: as of two views of the same images
def test_batches_that_are_checkpointed_together_keep_their_own_draws(own, same):
    def gradient(kept):
        model, see, _ = parts("encoder", own)
        see.set_epoch(5)
        torch.manual_seed(3)
        call = lambda x, y: see(model(x), y)
        batches = [(x, y if same else y.clone()) for x, y in images(3)]
        value = sum(
            checkpoint(call, x, y, use_reentrant=False) if kept else call(x, y) for x, y in batches
        )
        value.backward()
        after = torch.rand(3, generator=see.generator)
        return [p.grad for p in (*model.parameters(), *see.parameters())] + [after]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_a_training_resumed_inside_an_epoch_knows_the_epoch():
    model, see, optimizer = parts("proxies")
    see.set_epoch(4)
    for x, y in images(2):
        see(model(x), y).backward()
    _, other, _ = parts("proxies")
    other.load_state_dict(see.state_dict())
    other.generator.set_state(see.generator.get_state())
    x, y = images(1)[0]
    assert other.epoch == 4 and torch.equal(other(model(x), y), see(model(x), y))
    older = {name: value for name, value in see.state_dict().items() if name != "epoch"}
    parts("proxies")[1].load_state_dict(older)


def accelerated(kind, tmp_path, validated=False, stopped=False):
    accelerator = Accelerator(cpu=True)
    model, see, optimizer = accelerator.prepare(*parts(kind))
    values = []
    for epoch in range(EPOCHS):
        see.set_epoch(epoch)
        for step, (x, y) in enumerate(images()):
            if stopped and (epoch, step) == (3, 2):
                accelerator.save_state(tmp_path)
                state = see.generator.get_state()
                model, see, optimizer = accelerator.prepare(*parts(kind))
                accelerator._models, accelerator._optimizers = [model, see], [optimizer]
                accelerator.load_state(tmp_path)
                see.generator.set_state(state)
            value = see(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(value)
            optimizer.step()
            values.append(value.item())
        if validated:
            validate(model, see)
    return values


@pytest.mark.parametrize("kind", ["proxies", "pairs", "running means"])
def test_accelerate(kind, tmp_path):
    plain = accelerated(kind, tmp_path)
    assert plain == accelerated(kind, tmp_path, validated=True)
    assert plain == accelerated(kind, tmp_path, stopped=True)


@pytest.mark.parametrize("kind", ["proxies", "pairs", "miner"])
def test_the_librarys_trainer(kind):
    def trained(validated):
        model, see, optimizer = parts(kind)
        values = []
        x, y = (torch.cat(part) for part in zip(*images()))
        see.set_epoch(0)

        def end_of_epoch(trainer):
            if validated:
                validate(model, see)
            see.set_epoch(trainer.epoch)

        trainer = trainers.MetricLossOnly(
            models={"trunk": model},
            optimizers={"trunk_optimizer": optimizer},
            batch_size=24,
            loss_funcs={"metric_loss": see},
            dataset=TensorDataset(x, y),
            dataloader_num_workers=0,
            end_of_iteration_hook=lambda t: values.append(t.losses["metric_loss"].item()),
            end_of_epoch_hook=end_of_epoch,
        )
        torch.manual_seed(7)
        trainer.train(num_epochs=3)
        return values

    plain = trained(False)
    assert plain == trained(True) and len(plain) == 3 * STEPS


@pytest.mark.parametrize("kind", ["proxies", "running means"])
def test_lightning(kind, tmp_path):
    L = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.see, _ = parts(kind)
            self.values = []

        def on_train_epoch_start(self):
            self.see.set_epoch(self.current_epoch)

        def training_step(self, batch, _):
            value = self.see(self.model(batch[0]), batch[1])
            self.values.append(value.item())
            return value

        def validation_step(self, batch, _):
            self.log("validation", self.see(self.model(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

        def on_save_checkpoint(self, kept):
            kept["frames"] = self.see.generator.get_state()

        def on_load_checkpoint(self, kept):
            self.see.generator.set_state(kept["frames"])

    def fit(validated, resume=None):
        # the same batch at each step: where a loader goes on is not SEE's affair
        x, y = (torch.cat(part) for part in zip(*images(1) * STEPS))
        loader, module = DataLoader(TensorDataset(x, y), 24), Module()
        inside = L.pytorch.callbacks.ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=MIDDLE, save_top_k=1, monitor=None
        )
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        if resume is None and not validated:
            options["callbacks"] = [inside]
        else:
            options["enable_checkpointing"] = False
        L.Trainer(
            max_epochs=4, accelerator="cpu", limit_val_batches=1.0 if validated else 0, **options
        ).fit(module, loader, loader if validated else None, ckpt_path=resume)
        return module.values

    plain = fit(False)
    assert plain == fit(True) and len(plain) == 4 * STEPS
    resumed = fit(False, tmp_path / f"step={MIDDLE}.ckpt")  # in the middle of the third epoch
    assert len(resumed) == len(plain) - MIDDLE and resumed == plain[MIDDLE:]


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


def test_running_means_refuse_what_they_have_no_room_for():
    x, y = images(1)[0]
    see = SEELoss(losses.NTXentLoss(), 4, centers=RunningMeans(C, D))
    for wrong in (y - 1, y + 1, y + 4_102_000_000):
        with pytest.raises(SeeError, match="labels: expected classes 0 to 5"):
            see(x[:, :D], wrong)
    with pytest.raises(SeeError, match="the size of the loss's centers"):
        see(x[:, :10], y)


@pytest.mark.parametrize(
    "words, options",
    [
        ("expected 'own' of ProxyAnchorLoss, got 'references'", {"place": "references"}),
        ("centers: expected rows that are not zero", {"centers": torch.zeros(C, D)}),
        ("centers: expected finite numbers", {"centers": torch.full((C, D), torch.nan)}),
    ],
)
def test_options_that_cannot_work_are_told_at_construction(words, options):
    with pytest.raises(SeeError, match=words):
        SEELoss(losses.ProxyAnchorLoss(C, D), **options)


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
