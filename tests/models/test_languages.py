"""The languages of multilingual tokenizers: in sources, labels and generation, and in saved folders."""

from pathlib import Path
from typing import Any

import pytest
from support.families import make_family
from support.letters import letters
from support.multilingual import MULTILINGUAL, mbart, nllb
from transformers import AutoTokenizer

from lora_hf.config import DataConfig, GenerationConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.examples import Example
from lora_hf.data.tokenize import TokenizedDialogues, encode_sources
from lora_hf.errors import UserError
from lora_hf.models import languages as module
from lora_hf.models.generation import generation_config
from lora_hf.models.languages import decode, in_languages, language_start, languages, set_language
from lora_hf.models.plain_folder import save_model

LONG = "so we go on and on and on"


@pytest.mark.parametrize("family", MULTILINGUAL)
def test_labels_are_the_tokenizer_s_text_target_and_only_their_text_is_cut(
    family: str,
) -> None:
    make, (source, target) = MULTILINGUAL[family]
    tokenizer, reference = make(), make()
    before = tokenizer("a").input_ids, tokenizer(text_target="a").input_ids
    data = DataConfig(
        prompt="plain",
        max_target_length=9,
        max_source_length=9,
        source_language=source,
        target_language=target,
    )
    rows = TokenizedDialogues(
        [Example("a", "Hi.", ("Ho.", LONG)), Example("b", LONG, ("Ho.",))], tokenizer, data, ""
    )
    reference.src_lang, reference.tgt_lang = source, target
    cut = {"truncation": True, "max_length": 9}
    labels = reference(text_target=["Ho.", LONG]).input_ids
    if family == "seamless":  # begins with the decoder's start token, which the decoder gets anyway
        assert [row["labels"][0] for row in rows.rows] == [languages(tokenizer)[target]] * 3
        labels = [row[1:] for row in labels]
        whole = [reference(text_target=LONG, truncation=True, max_length=10).input_ids[1:]]
    else:
        whole = reference(text_target=[LONG], **cut).input_ids
    assert [row["labels"] for row in rows.rows] == [labels[0], *whole, labels[0]]
    assert [row["input_ids"] for row in rows.rows[1:]] == reference(["Hi.", LONG], **cut).input_ids
    assert decode(tokenizer, [rows[0]["labels"]]) == ["Ho."]
    assert (tokenizer("a").input_ids, tokenizer(text_target="a").input_ids) == before  # others may share it


@pytest.mark.parametrize(
    ("family", "model", "start"),
    [
        ("mbart", "MBart", "decoder_start_token_id"),  # shifts the language to the front
        ("mbart50", "MBart", "forced_bos_token_id"),
        ("nllb", "M2M100", "forced_bos_token_id"),
        ("seamless", "M2M100", "forced_bos_token_id"),
    ],
)
def test_generation_begins_in_the_labels_language(family: str, model: str, start: str) -> None:
    make, (_, target) = MULTILINGUAL[family]
    tokenizer = make()
    built = make_family(model)
    token = languages(tokenizer)[target]
    assert language_start(built, tokenizer, DataConfig(target_language=target)) == {start: token}
    set_language(built, tokenizer, DataConfig(target_language=target))
    kept = generation_config(built, GenerationConfig())  # what evaluations, scoring and saved folders use
    assert getattr(kept, start) == token
    own = next(iter(language_start(built, tokenizer, DataConfig()).values()))
    with in_languages(tokenizer, DataConfig()):
        assert own in tokenizer(text_target="a").input_ids  # without a field: the language of the labels


@pytest.mark.parametrize(("family", "taken"), [("mbart", "en_XX"), ("nllb", "eng_Latn")])
def test_a_language_that_nobody_has_set_is_named_once(
    family: str, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, model = MULTILINGUAL[family][0](), make_family("MBart")
    module._warn_once.cache_clear()
    for _ in range(2):
        language_start(model, tokenizer, DataConfig())
    language_start(model, tokenizer, DataConfig(target_language=MULTILINGUAL[family][1][1]))
    assert caplog.text.count(f"data.target_language is not set: outputs are in {taken!r}, which the") == 1
    caplog.clear(), module._warn_once.cache_clear()
    tokenizer.tgt_lang = MULTILINGUAL[family][1][1]  # as a saved folder says it
    language_start(model, tokenizer, DataConfig())
    assert not caplog.text


def test_a_saved_folder_and_the_manifest_have_the_languages(tmp_path: Path) -> None:
    tokenizer, model = nllb(), make_family("M2M100")
    data = DataConfig(prompt="plain", source_language="ron_Latn", target_language="deu_Latn")
    set_language(model, tokenizer, data)
    save_model(model, tokenizer, tmp_path, PredictionSettings(data))
    plain = AutoTokenizer.from_pretrained(tmp_path)
    code = plain.convert_tokens_to_ids("ron_Latn")
    assert (
        plain("Hi.").input_ids == encode_sources(["Hi."], tokenizer, data).ids[0]
        and code in plain("a").input_ids
    )
    assert model.generation_config.forced_bos_token_id == plain.convert_tokens_to_ids("deu_Latn")
    manifest = PredictionSettings(data).manifest()
    assert PredictionSettings.read(manifest, tmp_path).data == data
    assert "source_language" not in PredictionSettings().manifest()


def fixed_pair() -> Any:
    tokenizer = letters()
    tokenizer.src_lang, tokenizer.tgt_lang = "en", "de"  # as FSMT's
    return tokenizer


def marian() -> Any:
    tokenizer = letters()
    tokenizer.supported_language_codes = [">>fra<<", ">>ita<<"]
    return tokenizer


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (nllb, "deu_Latin", "does not know this language. Did you mean 'deu_Latn'?"),
        (nllb, "german", "does not know this language. Did you mean 'deu_Latn'?"),
        (mbart, "klingon", "does not know this language. Known are 'ar_AR', "),
        (letters, "de", "has no languages: leave out the field, and name it in data.prompt"),
        (fixed_pair, "fr", "is for 'de' alone: leave out the field"),
        (marian, "fra", "begin data.prompt with one of '>>fra<<', '>>ita<<'"),
    ],
)
def test_a_language_that_the_tokenizer_does_not_know_is_a_mistake(make: Any, code: str, message: str) -> None:
    data = DataConfig(target_language=code)
    with pytest.raises(UserError) as error:
        encode_sources(["Hi."], make(), data)
    assert str(error.value).startswith(f"data.target_language={code!r}: the model's tokenizer ")
    assert message in str(error.value)
