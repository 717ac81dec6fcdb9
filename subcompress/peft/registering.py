"""The name of the method, and its entry in PEFT's tables."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

METHOD = "subcompress"
"""The method's name, from which its prefix and its type in `adapter_config.json` are derived."""


def method_type() -> Any:
    """The member of `PeftType` for the method. It is added, because PEFT knows only its own methods."""
    name = METHOD.upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType(name)


def register(config: type, model: type) -> None:
    """Enter the method into PEFT's tables, once."""
    if method_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=METHOD, config_cls=config, model_cls=model, prefix=f"{METHOD}_")


__all__ = ["METHOD", "method_type", "register"]
