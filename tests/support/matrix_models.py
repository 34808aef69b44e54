"""Rows of the matrix of families: a tiny model with weights that matter, and a tokenizer of its kind.

A row is a family of `support.families`, or one of its members with a tokenizer of another kind.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from support.families import CLASSES, family_settings
from support.letters import letters
from support.models import CPU
from support.multilingual import mbart, mbart50, nllb, seamless
from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer, DataCollatorForSeq2Seq
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.families import family_of
from lora_hf.models.languages import set_language
from lora_hf.models.load import load_model

LISTED = sorted(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
"""Models that the installed Transformers lists as sequence-to-sequence."""


def gemma() -> Any:
    """A begin token and no end token, as Gemma's."""
    return letters("<s> $A")


def bart() -> Any:
    """`<s> X </s>`."""
    return letters("<s> $A </s>")


def nothing() -> Any:
    """Text alone, as Blenderbot-small's."""
    return letters(None)


class Row(NamedTuple):
    """A family of `support.families.EVERY`, its tokenizer, source and target language."""

    family: str
    tokenizer: Any = letters
    languages: tuple[str, str] | None = None


ROWS: dict[str, Row] = {
    "T5": Row("T5"),
    "ByT5": Row("T5", ByT5Tokenizer),
    "mT5": Row("MT5"),
    "UMT5": Row("UMT5"),
    "LongT5": Row("LongT5"),
    "Switch": Row("SwitchTransformers"),
    "T5Gemma": Row("T5Gemma", gemma),
    "T5Gemma 2": Row("T5Gemma2", gemma),
    "BART": Row("Bart", bart),
    "MVP": Row("Mvp", bart),
    "LED": Row("LED", bart),
    "mBART": Row("MBart", mbart, ("ro_RO", "de_DE")),
    "mBART-50": Row("MBart", mbart50, ("ro_RO", "de_DE")),
    "PLBart": Row("PLBart"),
    "NLLB": Row("M2M100", nllb, ("ron_Latn", "deu_Latn")),
    "NLLB-MoE": Row("NllbMoe", nllb, ("ron_Latn", "deu_Latn")),
    "Marian": Row("Marian"),
    "Marian, two vocabularies": Row("Marian unshared"),
    "FSMT": Row("FSMT"),
    "Pegasus": Row("Pegasus"),
    "Pegasus-X": Row("PegasusX"),
    "BigBird-Pegasus": Row("BigBirdPegasus"),
    "Blenderbot": Row("Blenderbot"),
    "Blenderbot-small": Row("BlenderbotSmall", nothing),
    "ProphetNet": Row("ProphetNet"),
    "BERT and BERT": Row("BertBert", bart),
    "BERT and GPT-2": Row("BertGpt2", bart),
    "SeamlessM4T": Row("SeamlessM4T", seamless, ("eng", "deu")),
    "SeamlessM4T v2": Row("SeamlessM4Tv2", seamless, ("eng", "deu")),
}
FAST = ("T5", "BART")
"""Rows of `make test`."""
QUICK = ("load", "targets", "labels", "identity", "save", "merge", "greedy")
"""Their checks there; the others, and the other rows, are in `make test-full`."""
EXAMPLES = [
    Example("a", "Anna: Lunch at noon?", ("Lunch.",)),
    Example("b", "Ben: Yes, see you there.", ("Ben comes.",)),
    Example("c", "Cora: No.", ("No",)),
]


@cache
def model_type(row: str) -> str:
    """Return the `model_type` of a row, as Transformers' list has it."""
    return str(family_settings(ROWS[row].family).model_type)


@dataclass
class Case:
    """One row in a folder of its own; what several checks need is made once.

    Attributes:
        name: a key of `ROWS`.
        folder: where the checkpoint and other files go.
    """

    name: str
    folder: Path

    @cached_property
    def row(self) -> Row:
        """The row."""
        return ROWS[self.name]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, in the row's languages."""
        tokenizer = self.row.tokenizer()
        if self.row.languages:
            tokenizer.src_lang, tokenizer.tgt_lang = self.row.languages
        return tokenizer

    @cached_property
    def data(self) -> DataConfig:
        """Settings of the data: the dialogue alone, in the row's languages."""
        source, target = self.row.languages or (None, None)
        return DataConfig(
            prompt="{dialogue}",
            max_source_length=32,
            max_target_length=16,
            source_language=source,
            target_language=target,
        )

    @cached_property
    def config(self) -> ModelConfig:
        """The saved checkpoint."""
        base = self.folder / "base"
        model = randomized(_build(self.row.family, self.tokenizer))
        model.save_pretrained(base)
        self.tokenizer.save_pretrained(base)
        return ModelConfig(model_name_or_path=str(base))

    @property
    def base(self) -> Path:
        """The folder of the checkpoint."""
        return Path(self.config.model_name_or_path)

    def plain(self) -> Any:
        """Load the checkpoint by Transformers alone."""
        return AutoModelForSeq2SeqLM.from_pretrained(self.base).eval()

    def load(self, **fields: Any) -> Any:
        """Load the checkpoint as a run does."""
        torch.manual_seed(0)
        model = load_model(self.config.model_copy(update=fields), CPU, report_generation=False)
        set_language(model, self.tokenizer, self.data)
        return model

    @cached_property
    def rows(self) -> TokenizedDialogues:
        """The tokenized examples."""
        return TokenizedDialogues(EXAMPLES, self.tokenizer, self.data, "train")

    @cached_property
    def batch(self) -> dict[str, torch.Tensor]:
        """The examples as one batch with labels and decoder inputs."""
        collate = DataCollatorForSeq2Seq(self.tokenizer, model=self.load())
        return dict(collate([dict(row) for row in self.rows.rows]))

    def logits(self, model: Any) -> torch.Tensor:
        """Return the logits of the batch."""
        with torch.no_grad():
            result: torch.Tensor = model.eval()(**self.batch).logits
        return result


def _build(family: str, tokenizer: Any) -> Any:
    vocabulary = {} if family == "FSMT" else {"vocab_size": max(len(tokenizer), 96)}
    if family in ("BertBert", "BertGpt2", "T5Gemma2"):
        vocabulary = {}
    settings = family_settings(family, **vocabulary)
    parts = [settings, *(part for part in vars(settings).values() if hasattr(part, "model_type"))]
    parts += [part for config in parts[1:] for part in vars(config).values() if hasattr(part, "model_type")]
    start = {"pad": "pad", "eos": "eos"}.get(family_of(settings).start[0], "bos")
    for part in parts:
        for name in ("pad", "eos", "bos"):
            setattr(part, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
        for name in vars(part):
            if ("drop" in name or "jitter" in name) and isinstance(getattr(part, name), float):
                setattr(part, name, 0.0)
    settings.decoder_start_token_id = getattr(tokenizer, f"{start}_token_id")
    if settings.decoder_start_token_id is None:
        settings.decoder_start_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    if family in CLASSES:
        import transformers

        return getattr(transformers, CLASSES[family][1])(settings)
    return AutoModelForSeq2SeqLM.from_config(settings)


def randomized(model: Any) -> Any:
    """Draw weights of a size at which logits differ from place to place."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                is_table = "embed" in name or "shared" in name or ".wte." in name or ".wpe." in name
                size = 0.5 if is_table else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=draw) * size)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return model.eval()
