"""HubMixin: from_pretrained, save_pretrained and push_to_hub for a network's own class."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from subcompress import format
from subcompress.api.info import info
from subcompress.api.load import load
from subcompress.errors import SubcompressError, one_line
from subcompress.hub.card import About
from subcompress.hub.fetching import local_folder
from subcompress.hub.publishing import Upload, build_files, push
from subcompress.rebuild.expand import digest_of
from subcompress.remote import CARD, CONFIG, FILE, LARGE, json_object
from subcompress.support.files import MAX_FILE_BYTES, read_bytes, write_bytes

RESERVED = {"self", "cls", "model_id", "revision", "cache_dir", "force_download", "local_files_only", "token"}
"""Names of arguments that huggingface_hub sets itself before it calls `__init__`."""


class HubMixin(ModelHubMixin, library_name="subcompress"):
    """Add from_pretrained, save_pretrained and push_to_hub to a network's class, as huggingface_hub's mixins do.

        class Net(nn.Module, HubMixin): ...
        net = Net.from_pretrained("net.safetensors")  # or "ORG/NAME", "ORG/NAME@REV", a folder of save_pretrained
        net.push_to_hub("ORG/NAME")

    config.json stores the arguments of `__init__`, and from_pretrained passes them again. They may be numbers, texts,
    lists of these, a dataclass `config`, and other types for which the class has `coders`, as in huggingface_hub. A
    network with any other argument, such as a module or a tensor, is not published.
    """

    _packed: bytes | None = None
    _base: Any = None
    _left_out: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> HubMixin:
        """Create the network. The base class records what config.json will hold, this one what it cannot hold."""
        net = super().__new__(cls, *args, **kwargs)
        net._left_out = cls._unsaved_arguments(args, kwargs)
        return net

    @classmethod
    def _unsaved_arguments(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of arguments of `__init__` that config.json cannot restore."""
        parameters = list(cls._hub_mixin_init_parameters.values())[1:]
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        given = {p.name: value for p, value in zip(by_place, args, strict=False)} | kwargs
        defaults = {p.name: p.default for p in parameters}
        rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL and len(args) > len(by_place)]
        config = given.get("config")
        if is_dataclass(config) and not isinstance(config, type):  # config.json is that, and nothing else
            return *(name for name in given if name != "config"), *rest
        changed = {n: v for n, v in given.items() if v is not defaults.get(n, inspect.Parameter.empty)}
        return *(name for name, value in changed.items() if not cls._is_jsonable(value)), *rest

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        base: Any = None,
        local_files_only: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Build the network with the weights of a repository, a folder or a file, in evaluation mode.

        Args:
            pretrained_model_name_or_path: ORG/NAME, ORG/NAME@REV, a folder or a file.
            revision: A branch, a tag or a commit.
            token: A token of the Hub.
            base: The base that the file was fine-tuned from, if it has one; see `load`.
            local_files_only: Use what the cache holds.
            **model_kwargs: Arguments of `__init__`, in place of those in config.json.

        Returns:
            The network.

        Raises:
            SubcompressError: The repository cannot be read, or the class has other tensors than the file.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_file():
            return cls._from_pretrained(model_id=name, base_source=base, **model_kwargs)
        folder = local_folder(name, revision, token, cached=local_files_only)
        text = read_bytes(folder / CONFIG, LARGE) if (folder / CONFIG).exists() else b"{}"
        if (config := json_object(text)) is None:
            raise SubcompressError(f"{CONFIG} of {name} is not a JSON object in UTF-8: is it the right repository?")
        if reserved := sorted(config.keys() & RESERVED & cls._names_given(config)):
            raise SubcompressError(
                f"{CONFIG} of {name} sets {reserved[0]}, which is not an argument of a network: fix it"
            )
        return super().from_pretrained(folder, base_source=base, **model_kwargs)

    @classmethod
    def _names_given(cls, config: dict[str, Any]) -> set[str]:
        """Return the names in a configuration that are passed to `__init__`."""
        parameters = cls._hub_mixin_init_parameters
        takes_all = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        return set(config) if takes_all else set(config) & parameters.keys()

    @classmethod
    def _from_pretrained(cls, *, model_id: str, base_source: Any = None, **kwargs: Any) -> Any:
        handled_here = {
            "revision",
            "cache_dir",
            "force_download",
            "local_files_only",
            "token",
            "subcompress",
            "library_name",
        }
        arguments = {k: v for k, v in kwargs.items() if k not in handled_here or k in cls._hub_mixin_init_parameters}
        file = Path(model_id) / FILE if Path(model_id).is_dir() else Path(model_id)
        packed = read_bytes(file, MAX_FILE_BYTES)
        try:
            module = cls(**arguments)
        except Exception as e:  # whatever the user's code raises for what a repository says
            raise SubcompressError(
                f"{cls.__name__} cannot be made with {', '.join(sorted(map(str, arguments))) or 'nothing'}, "
                f"as {CONFIG} or the call has it ({type(e).__name__}: {one_line(e)}): is it the right repository?"
            ) from e
        net = load(file, module, base=base_source)  # type: ignore[arg-type]
        net._packed, net._base = packed, base_source  # type: ignore[assignment]
        return net

    def _file(self) -> bytes:
        """Return the packed file of the present weights. Raises SubcompressError if there is none."""
        if self._packed is None:
            raise SubcompressError(
                "save_pretrained keeps the file that a network was loaded from, and this network was not "
                "loaded from one: fit and pack it, and use "
                f"{type(self).__name__}.from_pretrained('net.safetensors')"
            )
        assert isinstance(self, nn.Module)
        record, _ = format.from_bytes(self._packed, self._base)
        if digest_of(record, {name: t.detach().cpu() for name, t in self.state_dict().items()}) != record.digest:
            raise SubcompressError(
                "save_pretrained keeps the file that a network was loaded from, but the weights have changed "
                "since: fit and pack the network again"
            )
        return self._packed

    def _upload(self) -> Upload:
        data = self._file()
        with tempfile.TemporaryDirectory() as folder:
            write_bytes(Path(folder) / FILE, data)
            return Upload(data, info(Path(folder) / FILE), None, About(), self._config())

    def _save_pretrained(self, save_directory: Path) -> None:
        files = build_files(f"ORG/{save_directory.name}", self._upload())
        for name in (FILE, CONFIG):
            write_bytes(save_directory / name, files[name])

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card that `push_to_hub` writes, with a placeholder for the repository. Raises SubcompressError."""
        return ModelCard(build_files("ORG/NAME", self._upload())[CARD].decode())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config: Any = None,
        commit_message: str | None = None,
        branch: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Publish the file, with model.onnx of this network, in one commit, and return the commit's address.

        model_card_kwargs: the fields of `subcompress.hub.About`; options: `private`, `token` and the others of
        `subcompress.push`. Raises SubcompressError.
        """
        known = {"private", "token", "onnx", "tag", "force", "replace_card", "base", "say"}
        if unknown := sorted(options.keys() - known):
            raise SubcompressError(f"push_to_hub takes {', '.join(sorted(known))}; got {unknown[0]}")
        assert isinstance(self, nn.Module)
        data = self._file()
        with tempfile.TemporaryDirectory() as folder:
            write_bytes(Path(folder) / FILE, data)
            return push(
                Path(folder) / FILE,
                repo_id if branch is None else f"{repo_id}@{branch}",
                self,
                about=About(**(model_card_kwargs or {})),
                config=self._config() if config is None else _plain(config),
                message=commit_message,
                **options,
            ).url

    def _config(self) -> dict[str, Any]:
        """Return the arguments of `__init__`. Raises SubcompressError if JSON cannot hold all of them."""
        if self._left_out:
            raise SubcompressError(
                f"config.json cannot hold {', '.join(self._left_out)}, which {type(self).__name__} was made with: give "
                "numbers and texts instead, or give the class coders={TYPE: (to_json, from_json)}"
            )
        return _plain(self._hub_mixin_config)


def _plain(config: Any) -> dict[str, Any]:
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return dict(config or {})
