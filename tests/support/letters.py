"""A tokenizer with a small vocabulary and without bytes, as T5's is."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

KNOWN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'=_*()#-"


def letters(template: str | None = "$A </s>", **names: str | None) -> Any:
    """A tokenizer of single characters, which knows as many of them as T5's."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("<s>", 0.0), ("▁", -2.0)]
    plain = Tokenizer(models.Unigram([*pieces, *((c, -3.0) for c in KNOWN)], unk_id=2))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Metaspace()
    if template:
        ends = [(token, plain.token_to_id(token)) for token in ("<s>", "</s>", "<pad>")]
        plain.post_processor = processors.TemplateProcessing(template, None, ends)
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=plain, **{k: v for k, v in tokens.items() if v})
