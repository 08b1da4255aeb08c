"""Lightning, which goes on in an epoch when it is run again: python scripts/examples/lightning_fit.py CACHE OUT"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

import gdkd_cache as gc
from gdkd_cache import losses
from gdkd_cache.models.build import build_model


class Distilled(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.student = build_model("cnn-s", 10)

    def training_step(self, batch, index):
        images, labels, teacher = batch
        return F.cross_entropy(out := self.student(images), labels) + losses.gdkd(out, teacher.logits, top=teacher.top)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(cache: str, out: str, epochs: int = 2) -> Distilled:
    data = gc.open_cache(cache).dataset(gc.open_source("digits"))
    torch.manual_seed(0)
    model = Distilled()
    saving = ModelCheckpoint(out, every_n_train_steps=5, save_last=True)  # the loader's state too
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[saving], default_root_dir=out, logger=False)
    trainer.fit(model, data.loader(batch_size=128, shuffle=True), ckpt_path="last")
    return model


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
