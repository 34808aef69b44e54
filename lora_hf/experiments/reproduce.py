"""The published comparison, run again: FLAN-T5-base on DialogSum, both from the Hub."""

import logging
from collections.abc import Sequence

from rich.table import Table

from lora_hf.config.load import load_config
from lora_hf.errors import UserError, first_line
from lora_hf.experiments.compare import compare
from lora_hf.reporting.comparison_table import ARMS

CONFIG = "configs/flan_t5_base_dialogsum_lora.yaml"
PUBLISHED = {"base": 0.2334, "full": 0.4216, "lora": 0.4081}
"""ROUGE-1 as published; the saved predictions, scored again, give 0.2333, 0.4214 and 0.4081."""
logger = logging.getLogger(__name__)


def check_hub(model: str, dataset: str) -> None:
    """Ask the Hub for the smallest file of each.

    Raises:
        UserError: one cannot be had; the message says which, why, and what works without.
    """
    from huggingface_hub import hf_hub_download

    for name, file, kind in ((model, "config.json", "model"), (dataset, "README.md", "dataset")):
        try:
            hf_hub_download(name, file, repo_type=kind)
        except Exception as error:  # the client raises a dozen kinds; all mean that it cannot be had
            raise UserError(
                f"the published comparison needs the {kind} {name} from the Hugging Face Hub, and cannot get "
                f"it here: {first_line(error)} Without a network, `make quickstart` compares the "
                "same arms on the embedded model."
            ) from error


def reproduce(overrides: Sequence[str] = ()) -> Table:
    """Run the comparison (hours on a GPU, days without) and put it beside the published figures.

    Raises:
        UserError: the Hub cannot be reached.
    """
    import torch

    config = load_config(CONFIG, overrides)
    check_hub(config.model.model_name_or_path, config.data.dataset_name)
    if not torch.cuda.is_available():
        logger.warning("no CUDA device: this trains 248 million weights on the CPU, which takes days")
    return beside_published(compare(CONFIG, overrides)["arms"])


def beside_published(arms: dict[str, dict[str, float]]) -> Table:
    """ROUGE-1 of each arm, ours and published, and the gain over the base."""
    table = Table("ROUGE-1", *ARMS.values())
    table.add_row("published", *(f"{PUBLISHED[arm]:.4f}" for arm in ARMS))
    table.add_row("ours", *(f"{arms[arm]['rouge1']:.4f}" for arm in ARMS))
    table.add_row("difference", *(f"{arms[arm]['rouge1'] - PUBLISHED[arm]:+.4f}" for arm in ARMS))
    return table
