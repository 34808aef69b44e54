"""The embedded tiny T5: its size, its vocabulary, its head."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lora_hf
from scripts.tools.generator import generate

TINY_T5 = Path(lora_hf.__file__).parent / "assets" / "tiny_t5"
PROMPT = "Summarize the following conversation.\n\n{dialogue}\n\nSummary: "
ODD_TEXTS = [
    "Mara: Hello!\nTolen: Hi, Mara.",
    "two  spaces, a\ttab,\r\na carriage return and three newlines\n\n\n",
    " a space in front and behind ",
    "naïve café, Zürich, Ærø, 東京, Привет, שלום, مرحبا",
    "👩‍👩‍👧 🙂 🇫🇷 é e\u0301 \u200b \ufeff \u00a0",
    "".join(map(chr, range(1, 32))),
    "</s> <pad> <unk> <extra_id_0> are text like any other",
    "don 't , isn 't . We 're ' s",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_T5)


@pytest.fixture(scope="module")
def model():
    return AutoModelForSeq2SeqLM.from_pretrained(TINY_T5).eval()


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_every_input_ends_with_the_end_token(tokenizer):
    assert tokenizer("Mara: Hello!").input_ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_prompts_and_summaries_fit_in_512_tokens(tokenizer, split):
    rows = generate(split, 200)
    assert max(len(tokenizer(PROMPT.format(**row) + row["summary"]).input_ids) for row in rows) <= 256
    assert tokenizer.model_max_length == 512


def test_names_of_all_splits_are_made_of_few_pieces(tokenizer):
    pieces = [len(tokenizer.tokenize(" " + row["summary"].split()[0])) for row in generate("test", 200)]
    assert sum(pieces) / len(pieces) < 2.5


def test_assets_take_at_most_8_mib_and_hold_no_pickle():
    files = [file for file in TINY_T5.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


def test_layout_is_that_of_flan_t5():
    config = json.loads((TINY_T5 / "config.json").read_text())
    assert config["feed_forward_proj"] == "gated-gelu"
    assert config["tie_word_embeddings"] is False
    assert (config["decoder_start_token_id"], config["pad_token_id"], config["eos_token_id"]) == (0, 0, 1)


def test_head_is_untied_on_disk_and_after_loading(model):
    with safe_open(TINY_T5 / "model.safetensors", "pt") as file:
        assert {"lm_head.weight", "shared.weight"} <= set(file.keys())
        assert torch.equal(file.get_tensor("lm_head.weight"), model.lm_head.weight)
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_decoder_output_is_not_scaled_before_the_head(model, tokenizer):
    batch = tokenizer("Name the topic.", return_tensors="pt")
    start = torch.zeros((1, 1), dtype=torch.long)
    with torch.no_grad():
        out = model(**batch, decoder_input_ids=start, output_hidden_states=True)
    torch.testing.assert_close(out.logits, model.lm_head(out.decoder_hidden_states[-1]))


def test_every_token_has_a_row_in_the_embedding(model, tokenizer):
    assert len(tokenizer) <= model.config.vocab_size == model.shared.weight.shape[0]


def test_loading_warns_of_nothing_but_the_head(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoTokenizer.from_pretrained(TINY_T5)
        AutoModelForSeq2SeqLM.from_pretrained(TINY_T5)
    expected = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    # transformers 5 says so of every untied T5, FLAN-T5 too, whatever its config holds
    assert not [message for message in expected if "we will NOT tie them" not in message]


def test_model_copies_names_it_has_never_seen(model, tokenizer):
    rows = generate("test", 24)
    lines = [row["dialogue"].split("\n") for row in rows]
    prompts = [f"Repeat the first line of the conversation.\n\n{row['dialogue']}\n\nLine: " for row in rows]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=8, do_sample=False)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    right = [text.split(":")[0] == said[0].split(":")[0] for text, said in zip(texts, lines, strict=True)]
    assert sum(right) >= 20
