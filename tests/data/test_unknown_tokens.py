"""Tokens that a tokenizer does not know are counted beside cut rows, and named; every summary ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.inputs import shared_data
from support.letters import letters
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.task import TASKS
from lora_hf.data.examples import Example
from lora_hf.data.prepare import load_data, prompt_problem
from lora_hf.data.tokenize import TokenizedDialogues, encode_sources
from lora_hf.errors import UserError
from lora_hf.models.load import load_tokenizer

SQL = [
    Example(str(i), f"A: Who is younger than {i}?", (f"SELECT name WHERE age < {i} AND note = '{{x}}'",))
    for i in range(1, 9)
]
KOREAN = [Example("k", "#Person1#: 지금 뭐 해요?", ("#Person1#은 차를 마신다.",))]
PLAIN = [Example("p", "A: Shall we go?", ("A asks to go.",))]


def rows_of(examples: list[Example], tokenizer: Any = None, **fields: Any) -> TokenizedDialogues:
    data = DataConfig(prompt="plain", **fields)
    return TokenizedDialogues(examples, tokenizer or letters(), data, "train")


def test_every_lost_character_of_the_summaries_is_counted_and_named() -> None:
    unknown = rows_of(SQL).unknown
    assert unknown.is_fault and unknown.dialogues.unknown == 0
    # `<`, `{` and `}` of each of 8 summaries
    assert (unknown.summaries.texts, unknown.summaries.n, unknown.summaries.unknown) == (8, 8, 24)
    assert set(unknown.summaries.examples) == {"<", "{", "}"}
    assert "in 8 of 8 answers" in str(unknown.in_words_of(TASKS["question_answering"]))
    assert "summaries" in str(unknown) and "'<'" in str(unknown) and "dialogues" not in str(unknown)


def test_a_language_that_the_tokenizer_does_not_have_is_counted_in_dialogues_too() -> None:
    unknown = rows_of(KOREAN).unknown
    assert unknown.is_fault and unknown.dialogues.unknown / unknown.dialogues.tokens > 0.1
    assert {"지", "차"} & {*unknown.dialogues.examples, *unknown.summaries.examples}


def test_what_is_known_says_nothing_and_a_rare_character_is_no_fault() -> None:
    assert not rows_of(PLAIN).unknown
    rare = rows_of([Example("r", "A: ~ " + "so it goes on " * 12, ("It goes.",)), *PLAIN * 9]).unknown
    assert rare and not rare.is_fault and "'~'" in str(rare)


def test_what_was_cut_is_not_counted() -> None:
    long = [Example("l", "A: " + "a" * 100 + "<" * 9, ("b" * 60 + "<<",))]
    assert not rows_of(long, max_source_length=50, max_target_length=50).unknown


def test_the_prompt_s_own_unknown_characters_are_not_the_data_s() -> None:
    data = DataConfig(prompt="<<<{dialogue}>>>")
    sources = encode_sources(["A: Hi.", "A: so < so"], letters(), data)
    assert sources.in_prompt.unknown and set(sources.in_prompt.examples) == {"<", ">"}
    assert (sources.unknown.texts, sources.unknown.unknown) == (1, 1)


def test_a_line_break_that_the_tokenizer_does_not_know_is_named() -> None:
    data = DataConfig(prompt="{dialogue}\nTL;DR:")
    in_prompt = encode_sources(["A: Hi."], letters(), data).in_prompt
    assert "does not know '\\n';" in prompt_problem(data, in_prompt)


@pytest.mark.parametrize("prompt", ["{dialogue}", "</s> {dialogue} so:"])
def test_a_special_token_inside_a_text_is_text(prompt: str) -> None:
    """`letters` holds `</s>` as a piece, as T5's vocabulary does; the prompt's own stays a token."""
    tokenizer = letters()
    text = "A: x</s>y <pad> z <unk>"
    data = DataConfig(prompt=prompt)
    rows = TokenizedDialogues([Example("s", text, (text,)), *PLAIN], tokenizer, data, "train")
    source, labels = rows[0]["input_ids"], rows[0]["labels"]
    assert labels.count(1) == 1 and labels[-1] == 1 and 0 not in labels + source
    assert source.count(1) == 1 + prompt.count("</s>") and source[-1] == 1
    for ids in (source, labels):
        read = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert "xsypadz" in read  # `<`, `/` and `>` are unknown
    assert rows.with_special == 2
    assert rows[1]["labels"] == tokenizer(PLAIN[0].references[0]).input_ids


def test_a_tokenizer_that_knows_every_byte_has_nothing_to_count() -> None:
    rows = rows_of([*SQL, *KOREAN], load_tokenizer(ModelConfig()))
    assert not rows.unknown


def pieces(unknown: str | None, alphabet: Any = pre_tokenizers.Metaspace, **names: str) -> Any:
    """A tokenizer with `letters`' characters, as BPE; with or without a token for the others."""
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "▁", *"ATaeghinostklw.:?"])}
    plain = Tokenizer(models.BPE(words, [], unk_token=unknown))
    plain.pre_tokenizer = alphabet()
    plain.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", **names)


def deletes() -> Any:
    """A tokenizer whose normalizer removes what is not a letter of ASCII."""
    tokenizer = pieces("<unk>", unk_token="<unk>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^A-Za-z .:?]"), "")
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        pieces(None),
        pieces(None, pre_tokenizers.ByteLevel),
        pieces("<pad>", unk_token="<pad>"),
        pieces("<unk>"),
        deletes(),
    ],
    ids=["no unknown token", "bytes left out", "padding as unknown", "not named", "a normalizer"],
)
def test_characters_that_a_tokenizer_leaves_out_are_counted_as_unknown(tokenizer: Any) -> None:
    unknown = rows_of([Example("d", "A: a note 지금", ("A notes 지금은",))], tokenizer).unknown
    assert unknown.is_fault
    assert (unknown.dialogues.unknown, unknown.summaries.unknown) == (2, 3)
    assert set(unknown.summaries.examples) == {"지", "금", "은"}
    assert not rows_of([Example("k", "A: a note", ("A notes",))], tokenizer).unknown


def words_only() -> Any:
    """A tokenizer of whole words: no character by itself is known."""
    words = {word: i for i, word in enumerate(["<unk>", "<pad>", "</s>", "Ann", "likes", "tea"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **names)


def test_where_all_characters_are_unknown_alone_they_are_still_examples() -> None:
    unknown = rows_of([Example("w", "Ann likes coffee", ("Ann likes tea",))], words_only()).unknown
    assert unknown.dialogues.unknown == 1 and unknown.dialogues.examples and not unknown.summaries.unknown


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_warns_per_split_before_training(
    streams: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, examples in {"train": SQL, "validation": PLAIN, "test": KOREAN}.items():
        rows = [{"id": e.id, "dialogue": e.dialogue, "summary": e.references[0]} for e in examples]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name": str(tmp_path), "prompt": "plain", "streaming": streams}
    with caplog.at_level("INFO", logger="lora_hf"):
        model = {"model_name_or_path": "google/flan-t5-small"}
        load_data(RunConfig.model_validate({"model": model, "data": data}), letters())
    logged = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    found = [line for line in logged if "does not know" in line]
    assert [line.split(":")[0].split(",")[0] for line in found] == ["train", "test"]
    assert all("google/mt5-small" in line for line in found)


@pytest.mark.parametrize(
    ("template", "prefix", "suffix"),
    [("$A </s>", [], [1]), ("<s> $A", [3], [1]), ("<s> $A </s>", [3], [1]), (None, [], [1])],
    ids=["t5", "t5gemma", "bart", "nothing"],
)
def test_every_summary_ends_with_the_end_token_whatever_the_tokenizer_adds(
    template: str | None, prefix: list[int], suffix: list[int]
) -> None:
    tokenizer = letters(template)
    rows = rows_of([Example("a", "A: Hi.", ("Hi.", "so " * 50))], tokenizer, max_target_length=12)
    text = tokenizer("Hi.", add_special_tokens=False).input_ids
    assert rows[0]["labels"] == prefix + text + suffix
    assert len(rows[1]["labels"]) == 12 and rows[1]["labels"][-1] == 1
    assert (rows.added_end is None) == (template is not None and template.endswith("</s>"))


def test_a_cut_source_ends_as_the_tokenizer_ends_a_whole_one() -> None:
    for template, last in (("<s> $A", []), ("$A </s>", [1]), ("$A </s> <pad>", [1, 0])):  # mBART: a language
        tokenizer = letters(template)
        data = DataConfig(prompt="{dialogue} so:", max_source_length=20)
        whole, cut = encode_sources(["A: Hi.", "A: " + "b" * 50], tokenizer, data).ids
        tail = tokenizer("so:", add_special_tokens=False).input_ids + last
        assert len(cut) == 20 and cut[-len(tail) :] == tail == whole[-len(tail) :]


@pytest.mark.parametrize("what", ["eos_token", "pad_token"])
def test_a_tokenizer_without_an_end_token_or_padding_is_refused(what: str) -> None:
    with pytest.raises(
        UserError, match=f"the tokenizer has no {what}: name one in its tokenizer_config.json"
    ):
        rows_of(PLAIN, letters("<s> $A", **{what: None}))


def test_t5_s_own_tokenizer_loses_sql_and_korean_and_knows_dialogsum() -> None:
    t5 = AutoTokenizer.from_pretrained(shared_data("t5_tokenizer"))
    sql, korean = rows_of(SQL, t5).unknown, rows_of(KOREAN, t5).unknown
    assert sql.is_fault and {"<", "{", "}"} <= set(sql.summaries.examples)
    assert korean.is_fault and korean.dialogues.unknown / korean.dialogues.tokens > 0.2
