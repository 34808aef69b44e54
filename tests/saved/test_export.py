"""ONNX: the graphs write what the model writes, at any number of rows and lengths, in other hands too."""

import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import T5_SHAPE, TOKENS, make_bart
from transformers import MT5Config, MT5ForConditionalGeneration

from lora_hf import cli
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.exporting.onnx import OnnxT5, write_graphs
from lora_hf.models.load import load_model
from lora_hf.saved.export import export

pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The embedded model as the command exports it, and what the command says."""
    folder, said = tmp_path_factory.mktemp("exported") / "onnx", StringIO()
    with redirect_stdout(said):
        assert cli.run(["export", "embedded", "--output", str(folder)], debug=False) == 0
    return folder, said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_the_graphs_write_the_models_greedy_tokens(
    kind: str, exported: tuple[Path, str], tmp_path: Path
) -> None:
    """An MT5 has a class of its own, and this one the head of its embeddings; the T5 a head of its own."""
    if kind == "t5":
        model, graphs = load_model(ModelConfig(), torch.device("cpu")), OnnxT5(exported[0])
    else:
        torch.manual_seed(0)
        model = MT5ForConditionalGeneration(MT5Config(**T5_SHAPE | {"num_layers": 1})).eval()
        implementation = model.config._attn_implementation
        write_graphs(model, tmp_path)
        assert model.config._attn_implementation == implementation
        graphs = OnnxT5(tmp_path)
    ids = (model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id)
    for rows, source in ((1, 1), (1, 40), (5, 17)):
        torch.manual_seed(rows)
        lengths = torch.randint(1, source + 1, (rows,))
        lengths[0] = source
        mask = (torch.arange(source) < lengths[:, None]).long()
        sources = torch.randint(2, TOKENS, (rows, source)) * mask
        wanted = model.generate(
            input_ids=sources, attention_mask=mask, max_new_tokens=12, max_length=None, do_sample=False
        )
        found = graphs.greedy(sources.numpy(), mask.numpy(), 12, *ids)
        assert found.shape == tuple(wanted.shape) and (found == wanted.numpy()).all()


def test_what_cannot_be_exported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="a BartForConditionalGeneration is of type bart, and ONNX graphs"):
        write_graphs(make_bart(), tmp_path / "x")
    make_bart().config.save_pretrained(tmp_path / "base")  # without weights
    with pytest.raises(UserError, match="^MODEL='.*base' is of type bart.*only. Use the model's folder with"):
        export(str(tmp_path / "base"), tmp_path / "y")
    with pytest.raises(UserError, match="has no encoder.onnx"):
        OnnxT5(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter: merge it into its base with `lora-hf merge`"):
        export(str(tmp_path / "adapter"), tmp_path / "y")
    with pytest.raises(UserError, match="is an adapter: merge it"):
        export(str(tmp_path), tmp_path / "y")  # a run's directory
    (tmp_path / "full/model").mkdir(parents=True)
    with pytest.raises(UserError, match="full/model"):
        export(str(tmp_path / "full"), tmp_path / "y")
    assert not (tmp_path / "y").exists()
    (tmp_path / "mine.txt").write_text("x")
    assert cli.run(["export", "embedded", "--output", str(tmp_path)], debug=False) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_is_exported_by_the_command_and_run_with_onnxruntime_alone(
    exported: tuple[Path, str],
) -> None:
    folder, said = exported
    assert "8 of 8 sample summaries" in said
    assert (folder / "tokenizer.json").is_file()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "t5"
    alone = """
import sys, numpy, onnxruntime
encoder = onnxruntime.InferenceSession(sys.argv[1] + "/encoder.onnx")
ids = numpy.array([[5, 6, 7, 1]])
states = encoder.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
print(len(states), states[0].shape[2], "torch" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", alone, str(folder)], check=True, capture_output=True, text=True
    ).stdout
    layers = json.loads((folder / "config.json").read_text())["num_decoder_layers"]
    assert said.split() == [str(2 * layers), "4", "False"]


@pytest.mark.slow
def test_a_graph_that_writes_otherwise_is_told(
    exported: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Any, folder: Path) -> None:
        shutil.copytree(exported[0], folder, dirs_exist_ok=True)

    def one_other_token(graphs: OnnxT5, *given: Any) -> Any:
        written = greedy(graphs, *given)
        written[-1, -1] += 1
        return written

    greedy = OnnxT5.greedy
    monkeypatch.setattr("lora_hf.saved.export.write_graphs", write)
    for others in (lambda graphs, ids, *rest: np.zeros((len(ids), 3), np.int64), one_other_token):
        monkeypatch.setattr(OnnxT5, "greedy", others)
        with pytest.raises(RuntimeError, match="other tokens"):
            cli.run(["export", "embedded", "--output", str(tmp_path / "x")], debug=False)
