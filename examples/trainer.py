"""transformers' own Trainer with a Subspace in place of the network: trained in d coordinates, packed, loaded again.

python examples/trainer.py
python examples/trainer.py --model DIR --csv FILE.csv --base DIR --epochs 3

With -o DIR, the same command goes on from the last checkpoint in DIR. Needs `pip install accelerate`, as the Trainer
does.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from tiny_bert import arguments
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import subcompress
from subcompress.data import texts
from subcompress.data.pretrained import load_model, load_tokenizer
from subcompress.training.tasks import accuracy_of


class Rounding(TrainerCallback):
    """Coordinates are rounded for the second half; a Trainer that goes on from a checkpoint knows of it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not model.bits and state.global_step >= state.max_steps // 2:
            model.round(bits=4)


class Rows(torch.utils.data.Dataset):
    """A split as the Trainer reads one: an index an example, so that a batch is padded at once."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> int:
        return i

    def batch(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Name -> (n, longest), and the labels."""
        x, y = self.split[torch.tensor(rows)]
        return {**x, "labels": y}


def main() -> None:
    """Train, from a checkpoint where there is one, pack, load, and write what `from_pretrained` reads."""
    given = arguments(__doc__)
    torch.manual_seed(0)
    data = texts.load(given.csv, load_tokenizer(given.model))
    net = load_model(given.model, labels=len(data.facts.labels), weights=given.base is not None)
    sub = subcompress.Subspace.of(net, given.d, base=given.base)

    rows, folder = Rows(data.train), str(given.output / "trainer")
    options = TrainingArguments(
        output_dir=folder,
        num_train_epochs=given.epochs,
        per_device_train_batch_size=16,
        learning_rate=sub.plan.lr / 3,  # in units of the frozen constant, not of the weights
        weight_decay=0.0,
        max_grad_norm=0.0,  # a gradient of z is of another size than those of weights
        lr_scheduler_type="cosine",
        warmup_steps=0.2,
        save_strategy="epoch",
        save_total_limit=1,
        remove_unused_columns=False,  # it would look for their names in Subspace.forward
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(model=sub, args=options, train_dataset=rows, data_collator=rows.batch, callbacks=[Rounding()])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if os.path.isdir(folder) else None)

    file = given.output / "net.safetensors"
    count = subcompress.pack(sub.cpu(), file, data.facts)
    rebuilt = subcompress.load(file, net, base=given.base)
    print(f"{file}: {count} bytes, test accuracy {accuracy_of(rebuilt, data.test):.4f}")
    rebuilt.save_pretrained(given.output / "dense")
    print(f"{given.output / 'dense'}: for from_pretrained")


if __name__ == "__main__":
    main()
