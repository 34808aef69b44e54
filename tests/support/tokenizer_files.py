"""Names of the files in which tokenizers are stored."""

from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name


def tokenizer_files() -> set[str]:
    """Return the names of the files of every encoder-decoder's tokenizer in Transformers."""
    kinds = {*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES} & {*TOKENIZER_MAPPING_NAMES}
    classes = [tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES[kind] or "") for kind in [*kinds, "fsmt"]]
    return {file for one in classes if one for file in one.vocab_files_names.values()}
