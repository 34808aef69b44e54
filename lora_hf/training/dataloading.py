"""Batches that depend only on data, seed and epoch, with any number of processes."""

import os
from typing import Any

from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import DataLoader, Sampler
from transformers import Seq2SeqTrainer

from lora_hf.data.sampler import EpochSampler
from lora_hf.data.streaming import StreamedDialogues
from lora_hf.errors import UserError
from lora_hf.training.arguments import OF_ONE_READER, OWN_BATCHES, check_streaming


class OrderedTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose processes share the batches of a single one; evaluations count each row once."""

    epoch_sampler: EpochSampler | None = None
    """The order of the training rows, unless they are streamed or ordered by the Trainer."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        strategy = str(getattr(self.args, "train_sampling_strategy", "random"))
        if strategy not in ("random", "group_by_length") or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(dataset)
        lengths = self._lengths(dataset) if strategy == "group_by_length" else None
        self.epoch_sampler = self._sampler(len(dataset), lengths)
        return self.epoch_sampler

    def _lengths(self, dataset: Any) -> list[int]:
        """Return the lengths of rows: their column of lengths, which sound or images need, or their tokens.

        Raises:
            UserError: the rows have neither.
        """
        column, lengths = self.args.length_column_name, []
        if column in (getattr(dataset, "column_names", None) or ()):
            return [int(length) for length in dataset[column]]  # without decoding the other columns
        for row in dataset:
            if column not in row and "input_ids" not in row:
                raise UserError(
                    "train_sampling_strategy='group_by_length' needs the length of each row: add a column "
                    f"{column!r} (length_column_name) with numbers, or set train_sampling_strategy='random'",
                    "train_sampling_strategy",
                )
            lengths.append(int(row[column]) if column in row else len(row["input_ids"]))
        return lengths

    def _sampler(self, n: int, lengths: list[int] | None) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        rank, world = self.args.process_index, self.args.world_size
        return EpochSampler(n, seed, self.args.train_batch_size * world, lengths, rank, world)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the Trainer's own, except that accelerate must not divide again what the sampler divides."""
        settings = self.args.accelerator_config
        for name in OF_ONE_READER if self.args.world_size > 1 else ():
            if getattr(settings, name, False):
                raise UserError(f"accelerator_config: {OWN_BATCHES.format(name)}", "accelerator_config")
        if isinstance(self.train_dataset, StreamedDialogues):
            return self._streaming_loader(self.train_dataset)
        if self.args.dataloader_num_workers:  # forked; tokenizers would warn of it although workers only pad
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        loader = super().get_train_dataloader()
        shards: Any = loader.batch_sampler
        sampler = getattr(getattr(shards, "batch_sampler", None), "sampler", None)
        if isinstance(shards, BatchSamplerShard) and isinstance(sampler, EpochSampler):
            shards.num_processes, shards.process_index, shards.even_batches = 1, 0, False
        return loader

    def _streaming_loader(self, stream: StreamedDialogues) -> DataLoader[Any]:
        """Return a loader of streamed rows, which accelerate must neither divide again nor fill up."""
        strategy = str(self.args.train_sampling_strategy)
        check_streaming(strategy, self.args.dataloader_num_workers)
        batch_size = self.args.train_batch_size * self.args.world_size
        stream.share(self._sampler, batch_size, strategy == "group_by_length")
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "pin_memory": self.args.dataloader_pin_memory,
            "drop_last": self.args.dataloader_drop_last,
        }
        loader = DataLoader(stream, self.args.train_batch_size, **options)
        device = self.args.device
        return prepare_data_loader(
            loader,
            device,
            1,
            0,
            put_on_device=True,
            even_batches=False,
            dispatch_batches=False,
            non_blocking=self.accelerator.non_blocking,
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's own loop without the rows that fill up the last batch of several processes."""
        if (getattr(self, "_gen_kwargs", {}).get("num_return_sequences") or 1) == 1:
            self.gather_function = self.accelerator.gather_for_metrics  # Seq2SeqTrainer's keeps those rows
        return super().evaluation_loop(*args, **kwargs)
