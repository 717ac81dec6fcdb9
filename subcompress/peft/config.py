"""What an adapter is made with, as `adapter_config.json` holds it."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from peft.config import PeftConfig

from subcompress.errors import SubcompressError
from subcompress.peft.files import check_file, make_canonical
from subcompress.peft.registering import method_type
from subcompress.subspace.plan import check_options
from subcompress.support.names import AUTO, DEFAULT_ROLES


@dataclass
class SubspaceConfig(PeftConfig):  # type: ignore[misc, unused-ignore]
    """The settings of an adapter of d coordinates, for `peft.get_peft_model`.

    Args:
        d: Number of coordinates. Nothing else is trained.
        bits: Bits of a coordinate in the file, 2 to 8.
        seed: Seed of the subspace.
        act_on: What to train, as for `fit`: roles (all, norms, biases, heads, embeddings, matrices), patterns of tensor
            names, `lora[:rank]` and `sketch[:rank]`, in a list or separated by commas. By default norms, biases and
            heads.
        operator: hadamard or scattered; auto is hadamard.
        new: Names or patterns of tensors that start from the seed instead of from the base. A head that the base's
            files lack does so anyway.
        modules_to_save: Always refused, because no module is saved whole.

    Raises:
        SubcompressError: A subspace does not take an option, or not its value.
    """

    d: int = field(default=500, metadata={"help": "Number of coordinates. Nothing else is trained."})
    bits: int = field(default=4, metadata={"help": "Bits of a coordinate in the file, 2 to 8."})
    seed: int = field(default=0, metadata={"help": "Seed of the subspace."})
    act_on: str | list[str] = field(
        default=DEFAULT_ROLES, metadata={"help": "Roles, names and patterns of tensors that coordinates act on."}
    )
    operator: str = field(default=AUTO, metadata={"help": "hadamard or scattered; auto is hadamard."})
    new: list[str] | None = field(default=None, metadata={"help": "Tensors that start from the seed."})
    modules_to_save: InitVar[list[str] | None] = None

    def __post_init__(self, modules_to_save: list[str] | None) -> None:
        super().__post_init__()
        self.peft_type = method_type()
        if not isinstance(self.act_on, str):
            self.act_on = ",".join(self.act_on)
        if modules_to_save:
            raise SubcompressError(
                f"an adapter of subcompress cannot save whole modules; got modules_to_save={modules_to_save}: "
                "name their tensors in act_on, or in new if the base lacks them"
            )
        for name in ("d", "bits", "seed"):
            if type(value := getattr(self, name)) is not int:
                raise SubcompressError(f"{name} must be a whole number; got {value!r}")
        if self.d < 1:
            raise SubcompressError(f"d must be at least 1; got {self.d}")
        check_options(self.bits, self.seed, self.operator)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and give the adapter's file beside it the header of a packed file.

        Args:
            save_directory: The folder.
            **kwargs: As for `PeftConfig`.
        """
        super().save_pretrained(save_directory, **kwargs)
        make_canonical(Path(save_directory))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> SubspaceConfig:
        """Read `adapter_config.json`, and check the adapter's file in the same folder.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the Hub.
            subfolder: A folder in there.
            **kwargs: As for `PeftConfig`.

        Returns:
            The settings.

        Raises:
            SubcompressError: The file is damaged, or a subspace does not take an option.
        """
        check_file(Path(pretrained_model_name_or_path, subfolder or ""))
        found: SubspaceConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        return found


# PEFT adds the heads of classifiers to this attribute where there is one, and would copy and save them whole.
delattr(SubspaceConfig, "modules_to_save")

__all__ = ["SubspaceConfig"]
