"""Reproduction of the published comparison: FLAN-T5-base on DialogSum, both from the Hub."""

import logging
from collections.abc import Mapping, Sequence

from rich.table import Table

from lora_hf.config.load import load_config
from lora_hf.errors import UserError, first_line
from lora_hf.experiments.compare import compare
from lora_hf.reporting.comparison_table import METHOD_LABELS
from lora_hf.run_records import RunResult

CONFIG = "configs/flan_t5_base_dialogsum_lora.yaml"
PUBLISHED = {"base": 0.2334, "full": 0.4216, "lora": 0.4081}
"""Published ROUGE-1; scoring the published predictions gives 0.2333, 0.4214 and 0.4081."""
logger = logging.getLogger(__name__)


def check_hub(model: str, dataset: str) -> None:
    """Check that model and dataset are available, by downloading one small file of each.

    Raises:
        UserError: one is not available.
    """
    from huggingface_hub import hf_hub_download

    for name, file, kind in ((model, "config.json", "model"), (dataset, "README.md", "dataset")):
        try:
            hf_hub_download(name, file, repo_type=kind)
        except Exception as error:  # the client raises a dozen types, all with this meaning
            raise UserError(
                f"the published comparison needs the {kind} {name} from the Hugging Face Hub, which cannot "
                f"be downloaded: {first_line(error)} Without a network, `make quickstart` compares the "
                "same methods on the embedded model."
            ) from error


def reproduce(overrides: Sequence[str] = ()) -> Table:
    """Run the comparison (hours on a GPU, days on a CPU) and compare it with the published figures.

    Raises:
        UserError: the Hub is not reachable.
    """
    import torch

    config = load_config(CONFIG, overrides)
    check_hub(config.model.model_name_or_path, config.data.dataset_name)
    if not torch.cuda.is_available():
        logger.warning("no CUDA device: this trains 248 million weights on the CPU, which takes days")
    return beside_published(compare(CONFIG, overrides)["arms"])


def beside_published(arms: Mapping[str, RunResult]) -> Table:
    """Return ROUGE-1 of each method: published, ours, and the difference."""
    table = Table("ROUGE-1", *METHOD_LABELS.values())
    table.add_row("published", *(f"{PUBLISHED[method]:.4f}" for method in METHOD_LABELS))
    table.add_row("ours", *(f"{arms[arm]['rouge1']:.4f}" for arm in METHOD_LABELS))
    table.add_row("difference", *(f"{arms[arm]['rouge1'] - PUBLISHED[arm]:+.4f}" for arm in METHOD_LABELS))
    return table
