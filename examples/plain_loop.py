"""A network of transformers in a plain loop of torch: trained in d coordinates, packed, and loaded again.

python examples/plain_loop.py
python examples/plain_loop.py --model DIR --csv FILE.csv --base DIR --epochs 3
"""

from __future__ import annotations

import torch
from tiny_bert import arguments

import subcompress
from subcompress.data import texts
from subcompress.data.pretrained import load_model, load_tokenizer
from subcompress.training.tasks import accuracy_of


def main() -> None:
    """Train, pack, load, and write what `from_pretrained` reads."""
    given = arguments(__doc__)
    torch.manual_seed(0)
    data = texts.load(given.csv, load_tokenizer(given.model))
    net = load_model(given.model, labels=len(data.facts.labels), weights=given.base is not None)
    sub = subcompress.Subspace.of(net, given.d, base=given.base)

    size, each = 16, len(data.train) // 16
    optimizer = torch.optim.Adam(sub.parameters(), lr=sub.plan.lr / 3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, sub.plan.lr / 3, total_steps=given.epochs * each)
    for epoch in range(given.epochs):
        if epoch == given.epochs // 2:
            sub.round(bits=4)  # from here on the weights are those that will be packed
        order = data.train.arranged(
            torch.randperm(len(data.train))[: each * size], size
        )  # texts of one length together
        for rows in order.split(size):
            x, y = data.train[rows]  # padded to the longest of them, with an attention mask
            loss = torch.nn.functional.cross_entropy(sub.train()(**x).logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad(), sub.eval().materialized() as module:
            print(f"epoch {epoch + 1}: validation accuracy {accuracy_of(module, data.validation):.4f}")

    file = given.output / "net.safetensors"
    count = subcompress.pack(sub, file, data.facts)
    rebuilt = subcompress.load(file, net, base=given.base)
    print(f"{file}: {count} bytes, test accuracy {accuracy_of(rebuilt, data.test):.4f}")
    rebuilt.save_pretrained(given.output / "dense")
    print(f"{given.output / 'dense'}: for from_pretrained")


if __name__ == "__main__":
    main()
