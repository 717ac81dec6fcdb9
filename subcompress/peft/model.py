"""The tuner: a model that computes with the weights of its active adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.format import container
from subcompress.peft.bases import Bases
from subcompress.peft.config import SubspaceConfig
from subcompress.peft.layer import Adapter, SubspaceLayer, Swap
from subcompress.peft.passes import Passes, watched
from subcompress.peft.plans import plan_of_record, shared, starts_of_model
from subcompress.peft.registering import METHOD
from subcompress.rebuild.arrays import check_digest
from subcompress.rebuild.streaming import stream
from subcompress.subspace.coordinates import keep_statistics
from subcompress.subspace.copying import check_hooks
from subcompress.subspace.plan import Plan, make_plan
from subcompress.subspace.starts import Starts

LAYER = f"{METHOD}_layer"


@dataclass
class _Known:
    """The common parts of a model's adapters. bases: by the tensors that are new; starts: also by what is acted on;
    plans: by their settings; values: those of the base, by name."""

    bases: dict[tuple[str, ...], Bases] = field(default_factory=dict)
    starts: dict[tuple[Any, ...], Starts] = field(default_factory=dict)
    plans: dict[tuple[Any, ...], Plan] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Computed:
    """Weights without gradients, and what they were computed from."""

    weights: dict[str, Tensor]
    adapter: Adapter
    z: Tensor
    state: Tensor
    mode: tuple[bool, bool]


class SubspaceModel(BaseTuner):  # type: ignore[misc, unused-ignore]
    """The tuner that `peft.get_peft_model` makes from a model and a `SubspaceConfig`. It freezes the model's tensors.

    While the model runs, the weights of the active adapter take the place of the tensors that it changes. In training
    mode they follow z exactly. In evaluation mode z is rounded as in the file, so the evaluated, the saved and the
    loaded model have the same weights, bit for bit.
    """

    prefix = f"{METHOD}_"
    tuner_layer_cls = SubspaceLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012
    uses_shared_state = True

    # Adding, choosing and deleting adapters: what PEFT calls

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter that changes nothing yet, and freeze the model.

        Args:
            model: The model.
            adapter_name: The adapter. PEFT has already entered its settings.
            *args: Arguments of PEFT that are not used here.
            **kwargs: Arguments of PEFT that are not used here.

        Raises:
            SubcompressError: The model cannot be trained so, or the settings do not fit it.
        """
        config = self._config(adapter_name)
        if LAYER not in self._modules:
            self._begin(model)
        plan = self._plan(config)
        layer = self._layer
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        layer.adapters[adapter_name] = Adapter(plan, config.bits, device)
        for p in model.parameters():
            p.requires_grad_(False)
        layer.set_requires_grad(adapter_name, False)
        if not layer.active_adapters:
            layer.set_adapter(adapter_name, inference_mode=config.inference_mode)
        self._passes.watch(model, _acted_on(plan))
        keep_statistics(model)

    def _begin(self, model: nn.Module) -> None:
        check_hooks(model)
        if watched(model):
            raise SubcompressError(
                "the model already has adapters in another PeftModel: add more there with add_adapter or "
                "load_adapter, or unload() it first"
            )
        self.subcompress_layer = SubspaceLayer()
        self._known = _Known()
        self._computed: _Computed | None = None
        self._passes = Passes(Swap(model), self._acting_weights)

    @property
    def _layer(self) -> SubspaceLayer:
        layer = self._modules[LAYER]
        assert isinstance(layer, SubspaceLayer)
        return layer

    def _config(self, name: str) -> SubspaceConfig:
        config = self.peft_config[name]
        if not isinstance(config, SubspaceConfig):
            raise SubcompressError(f"an adapter of subcompress needs a SubspaceConfig; got a {type(config).__name__}")
        return config

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Let an adapter act.

        Args:
            adapter_name: The adapter.
            inference_mode: Whether it is frozen.

        Raises:
            SubcompressError: Several are given: one acts at a time.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise SubcompressError(f"only one adapter of subcompress can be active; got {', '.join(names)}: give one")
        if self._layer.merged:
            warnings.warn("Adapter cannot be set when the model is merged. Unmerging the model first.", stacklevel=2)
            self.unmerge_adapter()
        self._layer.set_adapter(names, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it acts, the first of the others acts from then on.

        Args:
            adapter_name: The adapter.

        Raises:
            SubcompressError: No adapter has that name, or it is merged.
        """
        if adapter_name not in self.peft_config:
            raise SubcompressError(
                f"there is no adapter {adapter_name}; the adapters are {', '.join(self.peft_config)}"
            )
        if adapter_name in self._layer.merged_adapters:
            raise SubcompressError(f"the adapter {adapter_name} is merged: unmerge it before deleting it")
        del self.peft_config[adapter_name]
        self._layer.delete_adapter(adapter_name)
        self._computed = None
        self.active_adapter = list(self._layer.active_adapters)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Freeze adapters, or let them train.

        Args:
            adapter_names: One or several of them.
            requires_grad: Whether they train.
        """
        self._layer.set_requires_grad(adapter_names, requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        self._layer.enable_adapters(enabled)

    def _cast_adapter_dtype(self, *args: Any, **kwargs: Any) -> None:
        """Coordinates are float32 always."""

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("an adapter of subcompress does not replace layers")

    def train(self, mode: bool = True) -> SubspaceModel:
        """As for any module; layers with running statistics keep to those of the base, in training too."""
        super().train(mode)
        keep_statistics(self.model)
        return self

    # Training

    def round_coordinates(self, adapter_name: str | None = None) -> None:
        """Round the coordinates in training from here on, as their file will hold them; gradients pass through.

        Args:
            adapter_name: The adapter; the active one by default.
        """
        adapter = self._adapter(adapter_name)
        adapter.round(adapter.file_bits)

    @property
    def rounds(self) -> bool:
        """Whether the active adapter is rounded in training."""
        return self._adapter().bits > 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of Adam that suits the active adapter."""
        return self._adapter().plan.lr

    def _adapter(self, name: str | None = None) -> Adapter:
        name = name or next(iter(self._layer.active_adapters), "")
        if name not in self._layer.adapters:
            raise SubcompressError(
                f"there is no adapter {name!r}; the adapters are {', '.join(self.peft_config) or 'none yet'}"
            )
        adapter: Adapter = self._layer.adapters[name]  # type: ignore[assignment]
        return adapter

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise SubcompressError(
                "adapter_names is not possible, because one adapter of subcompress acts on a whole batch: use "
                "set_adapter"
            )
        yield

    def _acting_weights(self) -> dict[str, Tensor] | None:
        """The weights to compute with, None if no adapter acts. Those without gradients are kept until something
        changes."""
        if self._passes.swap.held or (name := self._layer.acting) is None:
            return None
        adapter, training = self._adapter(name), self.model.training
        if torch.is_grad_enabled() and adapter.z.requires_grad:
            return adapter.weights() if training else adapter.saved_weights()
        mode, kept = (training, torch.is_inference_mode_enabled()), self._computed
        if kept is None or kept.adapter is not adapter or kept.mode != mode or not _same(kept, adapter):
            with torch.no_grad():
                weights = adapter.weights() if training else adapter.saved_weights()
            z, state = adapter.z.detach().clone(), adapter.rounding.state.clone()
            kept = self._computed = _Computed(weights, adapter, z, state, mode)
        return kept.weights

    # Plans

    def _bases(self, config: SubspaceConfig) -> Bases:
        new = tuple(config.new or ())
        if new not in self._known.bases:
            self._known.bases[new] = Bases(self.model, new)
        return self._known.bases[new]

    def _plan(self, config: SubspaceConfig) -> Plan:
        """The plan of an adapter that is not trained yet."""
        own = (tuple(config.new or ()), config.act_on)
        key = (*own, config.d, config.bits, config.seed, config.operator)
        if key not in self._known.plans:
            standing = next(iter(self._bases(config)))
            if own not in self._known.starts:
                self._known.starts[own] = starts_of_model(self.model, standing, str(config.act_on))
            plan = make_plan(
                self._known.starts[own],
                config.d,
                bits=config.bits,
                seed=config.seed,
                operator=config.operator,
                base=standing,
            )
            self._known.plans[key] = shared(plan, self._known.values)
        return self._known.plans[key]

    # Files

    def packed(self, adapter_name: str | None = None) -> bytes:
        """The packed file of an adapter, as `save_pretrained` writes it.

        Args:
            adapter_name: The adapter; the active one by default.

        Returns:
            The bytes of the file.

        Raises:
            SubcompressError: The model's own tensors have changed.
        """
        return format.to_bytes(self._adapter(adapter_name).packed(self.model.state_dict()))

    def _read(self, adapter_name: str, data: bytes) -> Tensor:
        """Let an adapter be that of a packed file, once its coordinates are those that are returned, (d,)."""
        parsed, config = format.parse(data), self._config(adapter_name)
        standing = self._bases(config).of(parsed)
        record = parsed.record(standing.base)
        check_digest(record, stream(record))
        former = self._adapter(adapter_name)
        largest = max(former.plan.parts[0].scales)
        plan, step = plan_of_record(record, self.model, standing, largest)
        group = record.groups[0]
        adapter = Adapter(shared(plan, self._known.values), group.bits, "cpu")
        z = torch.from_numpy(group.coordinates.astype("float32")) * step
        adapter.was_read(z, group.bits, step)
        if former.z.shape == z.shape:  # an optimizer may have this parameter
            adapter.z = former.z
        else:
            raise SubcompressError(
                f"adapter_config.json says that the adapter has {len(former.z)} coordinates; its file has {len(z)}"
            )
        self._layer.adapters[adapter_name] = adapter
        self._passes.watch(self.model, _acted_on(plan))
        return z

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: Any, unwanted_adapter_names: Any
    ) -> dict[str, Tensor]:
        """What PEFT saves: the payload of the packed file as one tensor, `z`."""
        payload = container.unwrap(_tuner(model).packed(adapter_name))
        return {"z": torch.frombuffer(bytearray(payload), dtype=torch.uint8)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What PEFT loads: the coordinates. Raises SubcompressError for another file than a packed one of this base."""
        if list(state_dict) != ["z"] or state_dict["z"].dtype != torch.uint8:
            raise SubcompressError(
                f"this is not an adapter of subcompress (a packed file): it has {', '.join(list(state_dict)[:3])}"
            )
        tuner = _tuner(model)
        z = tuner._read(adapter_name, container.wrap(state_dict["z"].cpu().numpy().tobytes()))
        prefix = "" if tuner is model else "base_model."
        place = f"{prefix}{LAYER}.adapters.{adapter_name}"
        return {f"{place}.z": z, f"{place}._extra_state": tuner._adapter(adapter_name).get_extra_state()}

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Let the model have the weights of an adapter, as its file holds them, until `unmerge_adapter`.

        Args:
            adapter_names: One adapter; the active one by default.
            safe_merge: Whether weights that are not finite are refused.

        Raises:
            SubcompressError: Several are given, or their weights are not finite.
        """
        if self._layer.merged:
            return
        adapter = self._to_merge(adapter_names)
        weights = _merged(adapter, safe_merge)
        self._passes.swap.put({n: nn.Parameter(w, requires_grad=False) for n, w in weights.items()})
        self._layer.merged_adapters = [n for n, a in self._layer.adapters.items() if a is adapter]

    def unmerge_adapter(self) -> None:
        """Give the model its own tensors back."""
        if self._layer.merged:
            self._layer.merged_adapters = []
            self._passes.swap.give_back()

    def _to_merge(self, names: list[str] | None) -> Adapter:
        if names is not None and len(names) != 1:
            raise SubcompressError(
                f"only one adapter of subcompress can be merged; got {', '.join(names) or 'none'}: give one"
            )
        return self._adapter(names[0] if names else None)

    def _unload_and_optionally_merge(  # type: ignore[override, unused-ignore]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """The model without adapters; with `merge`, its tensors are those of the adapter's file."""
        weights = _merged(self._to_merge(adapter_names), safe_merge) if merge else {}
        self.unmerge_adapter()
        self._passes.remove()
        with torch.no_grad():
            for name, w in weights.items():
                owner, leaf = self._passes.swap.places[name]
                owner._parameters[leaf].copy_(w)  # type: ignore[union-attr]
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        model: nn.Module = self.model
        return model


def _acted_on(plan: Plan) -> list[str]:
    """The tensors that an adapter changes."""
    moving = {name for name, start in plan.starts.items() if start.kind in ("base", "coded", "factored")}
    specs = plan.layout.tensors
    return [n for n, s in plan.starts.items() if n in moving or (s.kind == "tied" and specs[s.index].name in moving)]


def _merged(adapter: Adapter, safe: bool) -> dict[str, Tensor]:
    with torch.no_grad():
        weights = adapter.saved_weights()
    if safe and (odd := next((n for n, w in weights.items() if not bool(w.isfinite().all())), None)):
        raise SubcompressError(
            f"the merged weights of {odd} would hold nan or inf, which safe_merge refuses: train with a smaller step"
        )
    return weights


def _same(kept: _Computed, adapter: Adapter) -> bool:
    """Whether weights would be computed from the same numbers again."""
    moved = kept.z.device != adapter.z.device
    return not moved and torch.equal(kept.z, adapter.z) and torch.equal(kept.state, adapter.rounding.state)


def _tuner(model: nn.Module) -> SubspaceModel:
    found: Any = getattr(model, "_orig_mod", model)
    tuner: SubspaceModel = found if isinstance(found, SubspaceModel) else found.base_model
    return tuner


__all__ = ["SubspaceModel"]
