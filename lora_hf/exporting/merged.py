"""One base with many adapters in CTranslate2, which knows none: each is merged when it is first used.

A model of CTranslate2 has its own copy of all weights, so that only those of the last few adapters are kept.
"""

import logging
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from lora_hf.adapters import disable_adapters, merge_adapters, set_adapter, unmerge_adapters
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.arguments import MAX_MERGED
from lora_hf.exporting.ctranslate2 import Converter, CTranslate2Model
from lora_hf.files import write_json
from lora_hf.models.exported import EXPORT

logger = logging.getLogger(__name__)


class MergedModels:
    """Models of CTranslate2 for the adapters of one base, and for the base; the last ones used are kept.

    An adapter's weights are read when it is converted: `forget` it when they change.
    """

    def __init__(self, model: Any, tokenizer: Any, quantization: str, most: int = MAX_MERGED) -> None:
        """Prepare the conversion of a base.

        Args:
            model: the base, in float32 on the CPU; adapters may be added later.
            tokenizer: its tokenizer.
            quantization: of the converted weights, such as `int8`.
            most: converted models in memory, at least 1.

        Raises:
            UserError: the package ctranslate2 is missing.
        """
        self.quantization, self.most = quantization, most
        self._model, self._converter = model, Converter(model, tokenizer, quantization)
        self._kept: OrderedDict[str | None, CTranslate2Model] = OrderedDict()

    @property
    def names(self) -> list[str | None]:
        """The adapters that are converted, and None for the base; the last one used is the last."""
        return list(self._kept)

    def of(self, adapter: str | None, start: Mapping[str, int] | None = None) -> CTranslate2Model:
        """Return the model with an adapter merged, or the base for None; convert it if it is not kept.

        Args:
            adapter: the name of one that the model carries.
            start: how its outputs begin, as `models.languages.language_start` says.

        Raises:
            UserError: it cannot be merged, or the converter cannot convert the model.
        """
        if adapter not in self._kept:
            while len(self._kept) >= self.most:  # first, for their memory
                self._kept.popitem(last=False)
            self._kept[adapter] = self._converted(adapter, start or {})
        self._kept.move_to_end(adapter)
        return self._kept[adapter]

    def forget(self, adapter: str | None) -> None:
        """Drop the converted model of an adapter, if there is one."""
        self._kept.pop(adapter, None)

    def _converted(self, adapter: str | None, start: Mapping[str, int]) -> CTranslate2Model:
        begin, model = copy(self._model.generation_config), self._model
        for name, token in start.items():
            setattr(begin, name, token)
        before = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with self._merged(adapter):
                self._converter.write(folder, begin)
            begin.to_json_file(folder / "generation_config.json")
            record = {"config": model.config.to_diff_dict(), "quantization": self.quantization}
            write_json(folder / MANIFEST_NAME, {EXPORT: record})
            converted = CTranslate2Model(folder)
        of = "the base" if adapter is None else f"adapter {adapter!r}"
        logger.info("converted %s for CTranslate2 in %.1f s", of, time.perf_counter() - before)
        return converted

    @contextmanager
    def _merged(self, adapter: str | None) -> Iterator[None]:
        """Inside the block the model's weights have this adapter alone merged into them."""
        if adapter is None:
            with disable_adapters(self._model):
                yield
            return
        set_adapter(self._model, adapter)
        merge_adapters(self._model)
        try:
            yield
        finally:
            unmerge_adapters(self._model)
