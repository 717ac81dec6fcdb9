"""An adapter of a tiny Llama, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """PEFT asks transformers for what is called otherwise by now."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder of a saved adapter, and the answers of the model that was saved."""
    from adapters_of_llama import adapted, logits

    folder = tmp_path_factory.mktemp("adapter")
    model = adapted()
    model.save_pretrained(folder)
    return folder, logits(model)
