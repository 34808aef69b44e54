"""A saved adapter as one value: where it came from, and what its files say, each read once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_hf.adapters.checkpoint_io import (
    MANIFEST_NAME,
    Shapes,
    check_numbers,
    read_shapes,
    read_tensors,
)
from lora_hf.adapters.config import LoraConfig, name_matches
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME, read_peft_config
from lora_hf.errors import UserError, few
from lora_hf.files import file_sha256, read_object

OTHER_HASH = f"{{}} is not the file that was saved: its hash differs from the one in {MANIFEST_NAME}"
PICKLE = "adapter_model.bin"
"""The weights of an adapter as PEFT wrote them before 0.6."""
CONVERT = (
    "which can run code when it is read: load it with PEFT, and save it again (`save_pretrained` writes "
    "safetensors)"
)
HEADS = ("lm_head", "lm_head.out_proj")
"""Names of the output head in the families whose head may be tied to the embeddings; T5Gemma's is inside."""
AGAIN = "save or download the adapter again, all of its files"


@dataclass(frozen=True)
class SavedAdapter:
    """A folder that `save_adapter`, `save_extras` or PEFT wrote.

    Every file is read at most once, when it is first needed. Pass the object on rather than its folder.
    """

    folder: Path
    source: str = ""
    """As the user wrote it: a folder, a run directory, or USER/NAME[@REVISION]."""
    revision: str | None = None
    """The commit, for an adapter from the Hub."""

    @classmethod
    def at(cls, directory: "str | Path | SavedAdapter") -> "SavedAdapter":
        """Return the adapter in a folder, or the argument itself where it is one already."""
        if not isinstance(directory, str | Path | SavedAdapter):
            raise UserError(f"directory={directory!r} is not a folder: pass a str or a Path")
        if isinstance(directory, SavedAdapter):
            return directory
        return cls(Path(directory).expanduser(), str(directory))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of `lora_hf.json`; empty for a folder that PEFT wrote.

        Raises:
            UserError: the file is not a JSON object.
        """
        try:
            return read_object(self.folder / MANIFEST_NAME)
        except FileNotFoundError:
            return {}

    @property
    def method(self) -> Any:
        """The method's name as the manifest has it; PEFT's folders hold LoRA and do not say so."""
        return self.manifest.get("method", "lora")

    @cached_property
    def _peft(self) -> tuple[LoraConfig, dict[str, Any]]:
        return read_peft_config(self.folder)

    @property
    def config(self) -> LoraConfig:
        """The adapter's settings, from `adapter_config.json`; `modules_to_save` from the manifest if there.

        Raises:
            UserError: no such file, not a LoRA adapter, or fields that are not implemented.
        """
        names = self.manifest.get("modules_to_save") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            file = self.folder / MANIFEST_NAME
            raise UserError(f"{file}: modules_to_save={names!r} is not a list of names of layers; {AGAIN}")
        return replace(self._peft[0], modules_to_save=tuple(names)) if names else self._peft[0]

    @property
    def peft_config(self) -> dict[str, Any]:
        """The whole content of `adapter_config.json`; errors as `config`."""
        return self._peft[1]

    @property
    def base_model(self) -> str | None:
        """The name or path of the base model, where one of the two files gives it."""
        named = self.peft_config.get("base_model_name_or_path") if self.method == "lora" else None
        return named or self.manifest.get("base_model_name_or_path")

    @property
    def base_revision(self) -> str | None:
        """The base model's commit, tag or branch on the Hub, where one of the two files gives it."""
        named = self.peft_config.get("revision") if self.method == "lora" else None
        return named or self.manifest.get("base_model_revision")

    @cached_property
    def weights_file(self) -> Path:
        """The safetensors file.

        Raises:
            UserError: there is none, or only a pickle.
        """
        file = self.folder / WEIGHTS_NAME
        if not file.is_file():
            why = f"only a pickle, {CONVERT}"
            if not (self.folder / PICKLE).exists():
                names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
                why = (
                    f"{few(names, most=6) or 'nothing'}. An adapter is {CONFIG_NAME} and {WEIGHTS_NAME}, as "
                    "save_adapter and PEFT write them: give their folder, or the run's that it is in"
                )
            raise UserError(f"{self.folder} has no {WEIGHTS_NAME}; it holds {why}")
        return file

    @cached_property
    def shapes(self) -> Shapes:
        """Tensor names and shapes, from the header of the weights' file."""
        return read_shapes(self.weights_file)

    @cached_property
    def has_head(self) -> bool:
        """True if the adapter changes the output head, by factors or by a copy of its own."""
        copies = any(name_matches(self.config.modules_to_save, name) for name in HEADS)
        if not (copies or any(name_matches(self.config.target_modules, name) for name in HEADS)):
            return False
        of_head = [key for key in self.shapes if f".{HEADS[0]}." in key]
        return bool(of_head) and (copies or any(".lora_" in key for key in of_head))

    @cached_property
    def is_intact(self) -> bool | None:
        """True if the weights' hash is the one in the manifest; None where the manifest has none."""
        recorded = self.manifest.get("weights_sha256")
        return file_sha256(self.weights_file) == recorded if recorded else None

    def read_weights(self, check: Callable[[Shapes], None] | None = None) -> dict[str, Tensor]:
        """Return the tensors.

        Args:
            check: refuses shapes that do not fit, before memory is taken for them.

        Raises:
            UserError: no safetensors file, an unreadable one, or one that changed since it was saved; values
                that are not finite numbers.
        """
        if check:
            check(self.shapes)
        if self.is_intact is False:
            raise UserError(f"{OTHER_HASH.format(self.weights_file)}; it was changed or cut short: {AGAIN}")
        tensors = read_tensors(self.weights_file)
        check_numbers(tensors, self.weights_file)
        return tensors
