"""The network inside of what torch wraps around it, or around its layers, and which adds to the names of its tensors.

`torch.compile`, `DataParallel`, `DistributedDataParallel` and `checkpoint_wrapper` change how a network runs and not
what it computes: files are made of the network itself, under its own names.
"""

from __future__ import annotations

from torch import nn

from subcompress.tensors.layout import Layout

_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": ("torch.compile", "_orig_mod"),
    "torch.nn.parallel.data_parallel.DataParallel": ("DataParallel", "module"),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("DistributedDataParallel", "module"),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "checkpoint_wrapper",
        "_checkpoint_wrapped_module",
    ),
}
"""The name of a class -> its usual name, and the attribute with the network. Importing the classes takes a second."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The network without wrappers, with the same tensors; the module itself where there are none. Modules with wrapped
    layers are copied, except their tensors, so that `module` stays as it is."""
    return _without(module, {}) if any(map(_wrapper, module.modules())) else module


def unwrapped_for(module: nn.Module, layout: Layout) -> nn.Module:
    """The network without wrappers; with them where those are the names of the layout."""
    bare = unwrapped(module)
    if bare is module or Layout.of(bare.state_dict()) == layout:
        return bare
    return module if {t.name for t in layout} == module.state_dict().keys() else bare


def fitting(module: nn.Module, layout: Layout, what: str = "the model") -> nn.Module:
    """The network without wrappers, which has the tensors of `layout`.

    what: the module, for the message. Raises SubcompressError, naming the first difference, if it has other tensors.
    """
    bare = unwrapped_for(module, layout)
    layout.require(Layout.of(bare.state_dict()), what)
    return bare


def wrapping_note(module: nn.Module) -> str:
    """A note about the wrappers that are removed; empty if there are none."""
    found = dict.fromkeys(kind[0] for kind in map(_wrapper, module.modules()) if kind)
    if not found:
        return ""
    return f"{', '.join(found)} taken off: the network inside is trained and packed, its tensors called as there"


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    for kind in type(module).__mro__:
        if found := _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}"):
            return found
    return None


def _without(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """known: by id, what was made of modules before, which several others may share."""
    while kind := _wrapper(module):
        module = getattr(module, kind[1])
    if id(module) not in known:
        known[id(module)] = module
        children = {name: child if child is None else _without(child, known) for name, child in module._modules.items()}
        if any(children[name] is not child for name, child in module._modules.items()):
            known[id(module)] = _with_children(module, children)
    return known[id(module)]


def _with_children(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    """A copy of the module with the same tensors and other children."""
    found: nn.Module = object.__new__(type(module))
    vars(found).update(vars(module))
    own = {"_modules": children, "_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    vars(found).update(own, _compiled_call_impl=None)  # what `module.compile()` made runs the wrapped layers
    return found


__all__ = ["fitting", "unwrapped", "unwrapped_for", "wrapping_note"]
