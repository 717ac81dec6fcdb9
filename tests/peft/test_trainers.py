"""Trainers of transformers and TRL take an adapter as they take any other of PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_of_llama import TOKENS, logits
from lazily import needed
from tiny_llama import network, tokenizer

from subcompress.errors import SubcompressError

peft = needed("peft")
ours = needed("subcompress.peft")
transformers = needed("transformers")

ROWS = [{"input_ids": row, "labels": row} for row in TOKENS]
PLAIN: dict[str, Any] = {
    "max_steps": 2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_strategy": "no",
    "learning_rate": 0.05,
    "dataloader_pin_memory": False,
}


def check_saved(trainer: Any, folder: Path) -> None:
    """The coordinates have moved, and what the trainer saves is what it has."""
    model = trainer.model
    assert float(model.base_model.subcompress_layer.adapters["default"].z.detach().abs().sum()) > 0
    trainer.save_model(folder)
    again = peft.PeftModel.from_pretrained(network(), folder)
    assert torch.equal(logits(again), logits(model)) and not torch.equal(logits(model), logits(network()))


def test_trainer_of_transformers(tmp_path):
    model = peft.get_peft_model(network(), ours.SubspaceConfig(d=20, task_type="CAUSAL_LM"))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), **PLAIN | {"save_strategy": "steps", "save_steps": 1}
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=ROWS, callbacks=[ours.RoundCoordinates(after=0.5)])
    trainer.train()
    assert model.rounds
    check_saved(trainer, tmp_path / "saved")
    first = peft.PeftModel.from_pretrained(network(), tmp_path / "run" / "checkpoint-1")
    assert not torch.equal(logits(first), logits(model))
    with pytest.raises(SubcompressError):
        ours.RoundCoordinates(after=2)


@pytest.mark.slow
def test_supervised_fine_tuning_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    texts = Dataset.from_dict({"text": ["red is one and blue is two", "green is not three"] * 2})
    trainer = trl.SFTTrainer(
        network(),
        trl.SFTConfig(output_dir=str(tmp_path / "run"), max_length=16, **PLAIN | {"bf16": False}),
        train_dataset=texts,
        processing_class=tokenizer(),
        peft_config=ours.SubspaceConfig(d=20, task_type="CAUSAL_LM"),
    )
    trainer.train()
    check_saved(trainer, tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_group_relative_policy_optimization_of_trl(tmp_path, beta):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i) for i, _ in enumerate(completions)]

    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path / "run"),
        beta=beta,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=6,
        **PLAIN | {"bf16": False},
    )
    trainer = trl.GRPOTrainer(
        network(),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["red is", "blue and green"] * 2}),
        processing_class=tokenizer(),
        peft_config=ours.SubspaceConfig(d=20, task_type="CAUSAL_LM"),
    )
    trainer.train()
    check_saved(trainer, tmp_path / "saved")
