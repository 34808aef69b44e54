"""CTranslate2: a converted model writes the tokens of its own, in each family that its converter knows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.matrix_models import EXAMPLES, Case
from support.selection import slow_except
from transformers import GenerationConfig

from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.exporting import ctranslate2 as exporting
from lora_hf.exporting.ctranslate2 import (
    CTranslate2Model,
    own_search,
    readme_code,
    search_options,
    write_ctranslate2,
)
from lora_hf.files import write_json

needs_package = pytest.mark.skipif(
    not exporting.find_spec("ctranslate2"), reason="the package ctranslate2 is not installed"
)
SEARCHES: list[dict[str, Any]] = [{}, {"num_beams": 3, "early_stopping": True}, {"min_new_tokens": 6}]


def written(model: Any, tokenizer: Any, folder: Path, quantization: str = "float32") -> CTranslate2Model:
    """Return the model as CTranslate2 runs it."""
    folder.mkdir()
    settings = model.generation_config
    write_ctranslate2(model, tokenizer, folder, quantization)
    settings.to_json_file(folder / "generation_config.json")
    record = {"config": model.config.to_diff_dict(), "quantization": quantization}
    write_json(folder / "lora_hf.json", {"export": record})
    return CTranslate2Model(folder)


FAMILIES = ["T5", "mT5", "UMT5", "BART", "mBART", "mBART-50", "NLLB", "Pegasus"]


def text_of(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


@needs_package
@pytest.mark.parametrize("row", slow_except(["T5"], FAMILIES))
def test_a_converted_model_writes_the_same_tokens(row: str, tmp_path: Path) -> None:
    """Beams show the scale of T5's logits, which the converter reads from a field that says otherwise."""
    case = Case(row, tmp_path)
    model = case.load()
    fields = dict(vars(model.config))
    exported = written(model, case.tokenizer, tmp_path / "exported")
    assert vars(model.config).keys() == fields.keys()
    sources = encode_sources([example.dialogue for example in EXAMPLES], case.tokenizer, case.data).ids
    end = model.generation_config.eos_token_id
    for search in SEARCHES:
        options = {"max_new_tokens": 12, "max_length": None, "do_sample": False} | search
        ids = [torch.tensor([source]) for source in sources]
        expected = [model.generate(input_ids=one, **options)[0, 1:].tolist() for one in ids]
        found = exported.generate_ids(sources, [12, 12, 12], exported.options(search))
        assert [text_of(row, end) for row in found] == [text_of(row, end) for row in expected]


@needs_package
def test_settings_with_which_the_tokens_differ_come_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case("BART", tmp_path)
    model = case.load()
    exported = written(model, case.tokenizer, tmp_path / "exported")
    for search in SEARCHES:  # with these the tokens are equal in every family: the test above
        assert own_search(exported.options(search)) == []
    assert own_search(exported.options({"num_beams": 2, "min_new_tokens": 6})) == ["min_new_tokens"]
    (source,) = encode_sources([EXAMPLES[0].dialogue], case.tokenizer, case.data).ids
    search = {"num_beams": 4, "early_stopping": True, "repetition_penalty": 1.5, "max_new_tokens": 12}
    expected = model.generate(input_ids=torch.tensor([source]), max_length=None, do_sample=False, **search)
    (found,) = exported.generate_ids([source], [12], exported.options(search))
    end = model.generation_config.eos_token_id
    assert text_of(found, end) != text_of(expected[0, 1:].tolist(), end)
    assert (
        "CTranslate2 applies generation.repetition_penalty in its own way: some texts differ" in caplog.text
    )


@needs_package
def test_int8_weights_are_smaller_and_each_row_is_cut_at_its_limit(tmp_path: Path) -> None:
    case = Case("T5", tmp_path)
    exact = written(case.load(), case.tokenizer, tmp_path / "exact")
    small = written(case.load(), case.tokenizer, tmp_path / "small", "int8")
    sizes = [(model.folder / "model.bin").stat().st_size for model in (exact, small)]
    assert sizes[1] < 0.5 * sizes[0] and "int8" in small.description
    rows = small.generate_ids([[5, 6, 7, 1], [5, 1]], [4, 2], small.options({"min_new_tokens": 4}))
    assert [len(row) for row in rows] == [4, 2]
    with pytest.raises(UserError, match="forced_eos_token_id=3: CTranslate2 cannot force a last token"):
        small.generate_ids([[5, 1]], [4], small.options({"forced_eos_token_id": 3}))


@needs_package
def test_a_folder_that_is_not_complete_is_one_error(tmp_path: Path) -> None:
    case = Case("T5", tmp_path)
    folder = written(case.load(), case.tokenizer, tmp_path / "exported").folder
    for name, says in (
        ("shared_vocabulary.json", "has no shared_vocabulary.json: export the model again"),
        ("generation_config.json", "has no generation_config.json: export the model again"),
        ("lora_hf.json", "has no lora_hf.json that says what it was exported from"),
    ):
        (folder / name).rename(tmp_path / "kept")
        with pytest.raises(UserError, match=says):
            CTranslate2Model(folder)
        (tmp_path / "kept").rename(folder / name)
    (folder / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be read by CTranslate2"):
        CTranslate2Model(folder)


def test_without_the_package_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package ctranslate2: pip install 'lora_hf\[ctranslate2\]'"):
        CTranslate2Model(Path())


def test_the_settings_of_generate_become_those_of_ctranslate2() -> None:
    searched = {"num_beams": 4, "length_penalty": 0.5, "no_repeat_ngram_size": 3, "min_new_tokens": 2}
    assert search_options(GenerationConfig(**searched), 9) == {
        **{"beam_size": 4, "max_decoding_length": 9, "min_decoding_length": 2, "max_input_length": 0},
        **{"length_penalty": 0.5, "no_repeat_ngram_size": 3},
    }
    greedy = search_options(GenerationConfig(length_penalty=2.0, repetition_penalty=1.5), 9)
    assert greedy["beam_size"] == 1 and greedy["repetition_penalty"] == 1.5 and "length_penalty" not in greedy
    assert "beam_size=1, max_decoding_length=7" in readme_code(None, GenerationConfig(max_new_tokens=7))
