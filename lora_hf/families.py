"""Encoder-decoder families of Transformers as data: the one place that knows a family by its name.

A row says what cannot be read from a model or a tokenizer alone. A family without a row works by what can
be read from its modules. Fast paths (`fast/`), which copy the arithmetic of one family, and the engines of an
export (`exporting/`) have lists of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Label = Literal["text", "eos", "bos", "language"]
"""A part of a row of labels: the text's own tokens, the end or begin token, the target language's code."""


@dataclass(frozen=True)
class Family:
    """Facts about the models of one `config.model_type`."""

    targets: tuple[str, ...] = ()
    """Ends of the names of the query and value projections in every stack; where encoder and decoder spell
    them differently, both spellings. Empty for a pair of models, whose parts are read from the model."""
    stacks: tuple[str, ...] = ("encoder_layers", "decoder_layers")
    """Fields of config.json with the number of blocks of the encoder and of the decoder; dots lead into the
    configuration of a part. Empty if they are not known."""
    beside: tuple[str, ...] = ()
    """Names of modules beside the language model, which text does not reach: never a default target, nor part
    of `all-linear`."""
    routers: tuple[str, ...] = ()
    """Names of modules that choose among experts: never a default target, nor part of `all-linear`."""
    labels: tuple[tuple[Label, ...], ...] = (("text", "eos"),)
    """How rows of labels begin and end: what the tokenizer's `text_target` gives, with an end token where it
    adds none; several where tokenizers of one family differ."""
    start: tuple[Literal["pad", "eos", "bos", "cls", "language"], ...] = ("pad",)
    """Token that the decoder starts from, for a checkpoint that does not say it; one for each of `labels`."""
    languages: Literal["codes", "vocabularies"] | None = None
    """How source and target language are given: `codes` by the tokenizer's attributes `src_lang` and
    `tgt_lang`, `vocabularies` by two vocabularies, of which `text_target` selects the second."""
    generation: tuple[str, ...] = ()
    """Settings of `generate` that depend on the target language (its code: the first token of the labels is
    `forced_bos_token_id`, the last one is `decoder_start_token_id`), or without which the family does not
    work."""
    overflows_float16: bool = False
    """Activations exceed float16's largest number in feed-forward layers, and the loss becomes NaN."""
    positions: tuple[str, str] | None = None
    """Fields of config.json with the numbers of positions for which encoder and decoder have embeddings; None
    where they are computed for any length."""
    reads_ahead: bool = False
    """The decoder looks up the position after each token's as well; positions begin after that of padding."""
    shifts_labels: bool = True
    """True if the model's forward makes the decoder's inputs from labels."""
    own_head: str | None = None
    """Checkpoints whose `feed_forward_proj` begins so ("" for all) have a head of their own, although the
    model that Transformers builds from config.json may tie it to the embeddings."""
    impossible: Mapping[str, str] = field(default_factory=dict)
    """Feature that does not work with this family -> the reason."""


_QV, _QV_PROJ = ("q", "v"), ("q_proj", "v_proj")
_T5 = ("num_layers", "num_decoder_layers")
_SOURCE_QV = ("query", "value", *_QV_PROJ)  # the encoder's own attention spells them out
_CODE_FIRST: dict[str, Any] = {
    "labels": (("language", "text", "eos"),),
    "start": ("eos",),
    "languages": "codes",
    "generation": ("forced_bos_token_id",),
}
INT8 = "int8 of bitsandbytes"
_POSITIONS = ("max_position_embeddings", "max_position_embeddings")
_LENGTH_FIRST = (
    "Transformers gives its layers (length, batch, width), so rows of a batch cannot be told apart "
    "by the first dimension: `adapter_rows` refuses such a batch; `lora-hf serve` computes each batch with "
    "one adapter"
)

FAMILIES: dict[str, Family] = {
    # T5 and its descendants
    "t5": Family(_QV, _T5, own_head="gated", overflows_float16=True),  # T5 1.1, FLAN-T5 and ByT5 are gated
    "mt5": Family(_QV, _T5, own_head="", overflows_float16=True),
    "umt5": Family(_QV, _T5, own_head="", overflows_float16=True),
    "longt5": Family(_QV, _T5, overflows_float16=True),
    "switch_transformers": Family(_QV, _T5, routers=("router",), overflows_float16=True),
    "t5gemma": Family(
        _QV_PROJ,
        ("encoder.num_hidden_layers", "decoder.num_hidden_layers"),
        labels=(("bos", "text", "eos"),),
        start=("bos",),
    ),
    "t5gemma2": Family(
        _QV_PROJ,
        ("encoder.text_config.num_hidden_layers", "decoder.num_hidden_layers"),
        beside=("vision_tower", "multi_modal_projector"),
        labels=(("bos", "text", "eos"),),
        start=("bos",),
    ),
    # BART and its descendants
    "bart": Family(_QV_PROJ, labels=(("bos", "text", "eos"),), start=("eos",), positions=_POSITIONS),
    "mvp": Family(_QV_PROJ, labels=(("bos", "text", "eos"),), start=("eos",), positions=_POSITIONS),
    "led": Family(
        _SOURCE_QV,
        beside=(
            "query_global",
            "key_global",
            "value_global",
        ),  # for a global attention mask, which no run gives
        labels=(("bos", "text", "eos"),),
        start=("eos",),
        positions=("max_encoder_position_embeddings", "max_decoder_position_embeddings"),
        impossible={"mixed rows": _LENGTH_FIRST},
    ),
    "mbart": Family(
        _QV_PROJ,
        labels=(("text", "eos", "language"), ("language", "text", "eos")),  # mBART; mBART-50
        start=("language", "eos"),
        languages="codes",
        generation=("decoder_start_token_id", "forced_bos_token_id"),
        positions=_POSITIONS,
    ),
    "plbart": Family(
        _QV_PROJ,
        labels=(("text", "eos", "language"),),
        start=("language",),
        languages="codes",
        generation=("decoder_start_token_id",),
        positions=_POSITIONS,
    ),
    "m2m_100": Family(_QV_PROJ, **_CODE_FIRST),  # M2M100 and NLLB
    "nllb-moe": Family(
        _QV_PROJ,
        routers=("router",),
        impossible={
            "the same summary in every batch": "with moe_eval_capacity_token_fraction below 1, "
            "Transformers shares the experts' capacity among all rows of a batch",
            "a capacity of the experts that the first batch sets": "Transformers refuses "
            "expert_capacity: null in a config.json",
        },
        **_CODE_FIRST,
    ),
    "marian": Family(_QV_PROJ, languages="vocabularies", generation=("bad_words_ids",), positions=_POSITIONS),
    "fsmt": Family(
        _QV_PROJ,
        start=("eos",),
        languages="vocabularies",
        shifts_labels=False,
        impossible={
            "training": "Transformers' FSMT replaces -100 in labels by padding when it shifts them, so the "
            "loss of its trainer counts padding; that of a run does not",
            "mixed rows": _LENGTH_FIRST,
            "checkpointing": "Transformers' FSMT has no gradient checkpointing",
        },
    ),
    "pegasus": Family(_QV_PROJ, positions=_POSITIONS),
    "pegasus_x": Family(_QV_PROJ),
    "bigbird_pegasus": Family(
        _SOURCE_QV,
        start=("bos",),
        positions=_POSITIONS,
        impossible={
            "the same summary in every batch": "with attention_type block_sparse, Transformers "
            "chooses full or block-sparse attention, and the last block, by the longest source of a batch; "
            "and in a process without lora_hf, a model that has seen a short batch keeps full attention: "
            "call `model.get_encoder().set_attention_type` before each batch there, or set attention_type "
            "original_full in config.json, where summaries depend on neither"
        },
    ),
    "blenderbot": Family(_QV_PROJ, start=("bos",), positions=_POSITIONS),
    "blenderbot-small": Family(_QV_PROJ, start=("bos",), positions=_POSITIONS),
    # others
    "prophetnet": Family(
        ("query_proj", "value_proj"),
        ("num_encoder_layers", "num_decoder_layers"),
        start=("bos",),
        positions=_POSITIONS,
        reads_ahead=True,
        impossible={
            INT8: "its layers are called on tensors of four dimensions, which bitsandbytes cannot multiply"
        },
    ),
    "encoder-decoder": Family(
        stacks=("encoder.num_hidden_layers", "decoder.num_hidden_layers"),
        beside=("pooler",),
        labels=(("bos", "text", "eos"),),
        start=("cls",),
        positions=("encoder.max_position_embeddings", "decoder.max_position_embeddings"),
    ),
    "seamless_m4t": Family(
        _QV_PROJ,
        beside=("speech_encoder", "t2u_model", "vocoder"),
        labels=(("language", "text", "eos"),),  # its tokenizer puts the decoder's start before them
        start=("eos",),
        languages="codes",
        generation=("forced_bos_token_id",),
    ),
}
FAMILIES["seamless_m4t_v2"] = FAMILIES["seamless_m4t"]
UNKNOWN = Family(stacks=())
"""The row of a family that has none."""


def family_of(model_type: object) -> Family:
    """Return the row of a model, of its configuration, or of a `model_type`; `UNKNOWN` without one."""
    config = getattr(model_type, "config", model_type)
    if isinstance(config, Mapping):
        name = config.get("model_type")
    else:
        name = getattr(config, "model_type", config)
    return FAMILIES.get(name, UNKNOWN) if isinstance(name, str) else UNKNOWN


def has_own_head(settings: Any) -> bool:
    """Return whether checkpoints with this configuration have a head of their own, as far as the table says.

    Args:
        settings: a Transformers config, or the contents of config.json.
    """
    start = family_of(settings).own_head
    read = settings.get if isinstance(settings, Mapping) else lambda name: getattr(settings, name, None)
    return start is not None and str(read("feed_forward_proj") or "").startswith(start)
