"""One method, four loops: raw, Accelerate, the HuggingFace Trainer and Lightning end at the same weights."""

import logging
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from danlu.losses import soft_f1_loss
from danlu.optim import EGDD, EMA, Adafactor, Lion
from danlu.train import FGM, PGD, r_drop_loss

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
STEPS, BATCH, CLASSES = 6, 4, 3


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """What tests before left in accelerate's state of the process does not reach here, nor ours the next ones."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Rows(Dataset):
    """Made-up sentences of six tokens with a class each."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, 40, (STEPS * BATCH, 6), generator=g)
        self.labels = torch.randint(0, CLASSES, (STEPS * BATCH,), generator=g)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def fresh():
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def loader():
    return DataLoader(Rows(), batch_size=BATCH)


def plain_loss(model, batch):
    return cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"])


def adam(model):
    return torch.optim.Adam(model.parameters(), 1e-3)


# What a user writes: the loss of a batch, one backward pass, an optimizer.
def fgm(model, batch):
    return FGM(model, epsilon=0.5).backward(lambda: plain_loss(model, batch))


def pgd(model, batch):
    return PGD(model, epsilon=0.5, steps=2).backward(lambda: plain_loss(model, batch))


def r_drop(model, batch):
    logits = [model(input_ids=batch["input_ids"]).logits for _ in range(2)]
    loss = r_drop_loss(*logits, batch["labels"])
    loss.backward()
    return loss


def soft_f1(model, batch):
    loss = soft_f1_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])
    loss.backward()
    return loss


def plain(model, batch):
    loss = plain_loss(model, batch)
    loss.backward()
    return loss


METHODS = {
    "fgm": (fgm, adam),
    "pgd": (pgd, adam),
    "r_drop": (r_drop, adam),
    "soft_f1": (soft_f1, adam),
    "adafactor": (plain, lambda model: Adafactor(model.parameters(), lr=1e-3)),
    "lion": (plain, lambda model: Lion(model.parameters(), lr=1e-3)),
    "egdd": (plain, lambda model: EGDD(model.parameters(), lr=1e-3)),
    "ema": (plain, adam),
}


def averaged(model, optimizer):
    return EMA(model, decay=0.7, optimizer=optimizer)


def raw(step, optimizer_of):
    model = fresh().train()
    optimizer = optimizer_of(model)
    ema = averaged(model, optimizer)
    for batch in loader():
        optimizer.zero_grad()
        step(model, batch)
        optimizer.step()
    return model, ema


def with_accelerate(step, optimizer_of):
    from accelerate import Accelerator

    model = fresh().train()
    optimizer = optimizer_of(model)
    ema = averaged(model, optimizer)
    model, optimizer, data = Accelerator(cpu=True, mixed_precision="no").prepare(model, optimizer, loader())
    for batch in data:
        optimizer.zero_grad()
        step(model, batch)
        optimizer.step()
    return model, ema


def with_trainer(step, optimizer_of, tmp_path):
    class Own(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            return step(model, self._prepare_inputs(inputs)).detach()

        def get_train_dataloader(self):
            return self.accelerator.prepare(loader())

    model = fresh()
    optimizer = optimizer_of(model)
    ema = averaged(model, optimizer)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=BATCH, max_grad_norm=0.0, report_to="none",
        save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    Own(model, arguments, train_dataset=Rows(), optimizers=(optimizer, schedule)).train()
    return model, ema


def with_lightning(step, optimizer_of, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Own(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.automatic_optimization = fresh(), False

        def configure_optimizers(self):
            optimizer = optimizer_of(self.model)
            self.ema = averaged(self.model, optimizer)
            return optimizer

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            step(self.model, batch)
            optimizer.step()

    module = Own()
    module.model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few workers
        lightning.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(tmp_path),
        ).fit(module, loader())  # fmt: skip
    return module.model, module.ema


@pytest.mark.parametrize("name", METHODS)
def test_every_loop_ends_at_the_same_weights(name, tmp_path):
    step, optimizer_of = METHODS[name]
    start = fresh().state_dict()
    model, ema = raw(step, optimizer_of)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    with ema.swap():
        average = {key: value.clone() for key, value in model.state_dict().items()}
    moved = max(float((expected[k] - start[k]).abs().max()) for k in expected)
    assert moved > 1e-4 and max(float((expected[k] - average[k]).abs().max()) for k in expected) > 1e-5
    loops = {
        "accelerate": lambda: with_accelerate(step, optimizer_of),
        "trainer": lambda: with_trainer(step, optimizer_of, tmp_path),
        "lightning": lambda: with_lightning(step, optimizer_of, tmp_path),
    }
    for loop, run in loops.items():
        other, other_ema = run()
        for key, value in other.state_dict().items():
            assert torch.allclose(value, expected[key], rtol=0, atol=1e-6), (loop, key)
        with other_ema.swap():
            for key, value in other.state_dict().items():
                assert torch.allclose(value, average[key], rtol=0, atol=1e-6), (loop, key)
