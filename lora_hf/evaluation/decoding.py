"""Decoding functions for `generate`: the same tokens with less work.

`generate` computes every row of a batch until the longest has ended, and copies all keys and values to append
those of one token. With beam search it computes the source's keys and values once per beam, and copies them
at every step, although all beams of a dialogue share them.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessor
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMode

from lora_hf.adapters.active import shrinking_batch
from lora_hf.adapters.default_targets import reads_text
from lora_hf.errors import NotFinite
from lora_hf.fast.decoder import T5Decoder, can_step
from lora_hf.fast.t5 import HAS_INTERFACE, shares_sources, why_not

INITIAL_CAPACITY = 32
"""Tokens that a new buffer of keys can hold; a full buffer doubles."""
COMPACT_BELOW = 7 / 8
"""Finished rows are removed once at most this share of the batch is left: removing copies the others."""
ROW_AWARE_PROCESSORS = (
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
)
"""Logits processors that address rows by their index in the batch: with these no row is removed."""
UNSUPPORTED = ("decoder_input_ids", "decoder_inputs_embeds", "past_key_values", "assistant_model", "streamer")
"""Keywords of `generate` that the functions here do not support."""
MASKS_AHEAD = ("cuda",)
"""Devices on which a kernel's start takes longer than a small kernel."""
INTERNALS: dict[str, tuple[str, ...] | None] = {
    "_prepare_generation_config": ("generation_config", "kwargs"),  # options over the model's configuration
    "_beam_search": (
        *("input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus"),
        "model_kwargs",
    ),  # its search, over a smaller cache
    "_pad_token_tensor": None,  # an attribute: the padding token, on the model's device
}
"""Private names of Transformers' generation in use, with the methods' parameters.

Any release may rename them: `tests/evaluation/test_decoding_internals.py` names what is missing.
"""
logger = logging.getLogger(__name__)


def effective_config(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    """Return the configuration that `generate` will use.

    Keywords override the `generation_config` among them, which overrides the model's own.
    """
    given = {"generation_config": None, **options}
    config: GenerationConfig = model._prepare_generation_config(**given)[0]
    return config


def decoding_for(model: Any, options: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """Choose `greedy` or `beams`; return None, and log why, if only Transformers' own decoding can do it.

    Args:
        model: an encoder-decoder model.
        options: the keywords of `generate`.
    """
    config = effective_config(model, options)
    reason = _why_not(config, options) if reads_text(model) else "the model's input is not text"
    mode = config.get_generation_mode(options.get("assistant_model"))
    if not reason and mode == GenerationMode.GREEDY_SEARCH:
        return greedy
    if not reason and mode == GenerationMode.BEAM_SEARCH and shares_sources(model):
        return beams
    logger.debug("using Transformers' own decoding: %s", reason or f"{mode.value} with this model")
    return None


def _why_not(config: GenerationConfig, options: Mapping[str, Any]) -> str | None:
    if unsupported := [key for key in UNSUPPORTED if options.get(key) is not None]:
        return f"{unsupported[0]} is given"
    if config.use_cache is False:
        return "use_cache is off"
    if config.return_dict_in_generate:
        return "return_dict_in_generate is on"
    special = (
        "penalty_alpha",
        "num_beam_groups",
        "diversity_penalty",
        "prompt_lookup_num_tokens",
        "dola_layers",
    )
    asked = [key for key in special if (getattr(config, key, None) or options.get(key)) not in (None, 0, 1)]
    return f"{asked[0]} is set" if asked else None


class LargestScores(LogitsProcessor):
    """Remembers each row's largest score at each step: NaN if any score of the row is, and infinity."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (rows, vocabulary) as they are."""
        self.steps.append(scores.amax(-1))
        return scores

    def check(self, model: Any) -> None:
        """Refuse what was generated from scores that are not numbers: it would be empty or random text.

        Raises:
            NotFinite: a largest score is NaN or infinite.
        """
        largest = torch.cat(self.steps) if self.steps else torch.zeros(1)
        self.steps.clear()
        if bool((largest.isnan() | (largest == torch.inf)).any()):
            remedy = (
                "look for damaged weights of the base and the adapter with `lora-hf doctor`, or, when "
                "training, lower training.learning_rate"
            )
            if model.dtype == torch.float16:
                remedy = (
                    "float16 has too small a range for this model: set model.dtype to bfloat16 or float32"
                )
            raise NotFinite(f"the model's scores of the next token are NaN or infinite: {remedy}")


class GrowingLayer(DynamicLayer):
    """Keys and values at the front of a larger buffer: appending a token writes only that token."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append (batch, heads, new, d_kv), and return all keys and values, (batch, heads, length, d_kv)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = key_states[:, :, :0]
            self._buffers = [
                x.new_empty(*x.shape[:2], INITIAL_CAPACITY, x.shape[3]) for x in (key_states, value_states)
            ]
        old, new = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        while new > self._buffers[0].shape[2]:
            self._buffers = [torch.cat([x, torch.empty_like(x)], dim=2) for x in self._buffers]
        for buffer, added in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, old:new] = added
        self.keys, self.values = (buffer[:, :, :new] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue each row from the tokens of row `beam_idx`; copies the filled part of the buffer only."""
        length = self.keys.shape[2]
        for buffer, filled in zip(self._buffers, (self.keys, self.values), strict=True):
            buffer[:, :, :length] = filled[beam_idx]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, : self.keys.shape[2]] for buffer in self._buffers)


class BeamCache(EncoderDecoderCache):
    """The decoder's keys and values per beam, the source's per dialogue, which all its beams share."""

    def __init__(self) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.self_attention_cache.layer_class_to_replicate = GrowingLayer

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the decoder's rows; each stays among the beams of its dialogue."""
        self.self_attention_cache.reorder_cache(beam_idx)


def beams(model: Any, input_ids: Tensor, generation_config: Any, **kwargs: Any) -> Tensor:
    """Run Transformers' beam search with one source per dialogue; for `generate(custom_generate=beams)`.

    The model's attention must accept several queries per source, as `fast.attention` does.

    Args:
        input_ids: (batch * beams, 1), the decoder's start tokens.
        kwargs: what `generate` prepares; `encoder_outputs` and `attention_mask` have batch * beams rows.
    """
    n = generation_config.num_beams
    hidden = kwargs["encoder_outputs"].last_hidden_state[::n]
    kwargs["encoder_outputs"] = type(kwargs["encoder_outputs"])(last_hidden_state=hidden)
    kwargs |= {"attention_mask": kwargs["attention_mask"][::n], "past_key_values": BeamCache()}
    tokens: Tensor = model._beam_search(input_ids, generation_config=generation_config, **kwargs)
    return tokens


def greedy(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    on_step: Callable[[list[int], list[int]], None] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Search greedily, and drop finished rows from the batch; for `generate(custom_generate=greedy)`.

    Args:
        input_ids: (batch, 1), the decoder's start tokens.
        on_step: called after each step with the rows that have not ended, and their new tokens.
        kwargs: `encoder_outputs`, whose `last_hidden_state` is (batch, sources, d_model), and
            `attention_mask`, (batch, sources) without the positions that prompt tuning puts before them.

    The other arguments are what `generate` prepares.

    Returns:
        Tokens (batch, length), padded after their end.

    Raises:
        UserError: as `LargestScores.check`.
    """
    encoded, mask, ids = kwargs["encoder_outputs"], kwargs["attention_mask"], input_ids
    place, written = torch.arange(len(ids), device=ids.device), [ids]
    seen = LargestScores()
    may_leave = not any(type(processor).__name__ in ROW_AWARE_PROCESSORS for processor in logits_processor)
    if not may_leave:
        logger.debug("finished rows stay in their batch: a logits processor addresses rows by index")
    pad, hidden = generation_config._pad_token_tensor, encoded.last_hidden_state
    padding, is_open = pad.expand(len(ids), 1), torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    decoder = (
        T5Decoder(model, hidden, mask)
        if can_step(model, hidden, mask)
        else _ModelDecoder(model, encoded, mask)
    )
    with shrinking_batch(model) as keep:
        while True:
            scores = logits_processor(ids, decoder(ids[:, -1]).to(torch.float32, copy=True))
            largest, best = scores.max(-1)
            seen.steps.append(largest)
            tokens = torch.where(is_open, best, pad)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            written.append(padding.index_copy(0, place, tokens[:, None]))
            if on_step:
                on_step(place[is_open].tolist(), tokens[is_open].tolist())
            is_open = is_open & ~stopping_criteria(ids, None)
            left = int(is_open.sum())
            if not left:
                seen.check(model)
                return torch.cat(written, dim=1)
            if may_leave and left <= COMPACT_BELOW * len(is_open):
                kept = is_open.nonzero()[:, 0]
                place, ids, is_open = place[kept], ids[kept], is_open[kept]
                unneeded = _trailing_padding(mask[kept])
                mask = mask[kept, : mask.shape[1] - unneeded]
                decoder.keep(kept, unneeded)
                keep(place.tolist())


class _ModelDecoder:
    """The decoder by the model's own `forward`, for any family and device; see `fast.decoder.T5Decoder`."""

    def __init__(self, model: Any, encoded: Any, mask: Tensor) -> None:
        """Take the encoder's output, whose `last_hidden_state` may be longer than the mask: prompt tuning."""
        self._model, self._kind, self._mask = model, type(encoded), mask
        self._hidden, self._masks, self._length = encoded.last_hidden_state, _Masks(model), 0
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._cache.self_attention_cache.layer_class_to_replicate = GrowingLayer

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, (batch,), and return its logits, (batch, vocabulary)."""
        self._length += 1
        outputs = self._model(
            encoder_outputs=self._kind(last_hidden_state=self._hidden),
            **self._masks.of_token(self._mask, self._hidden, self._length),
            decoder_input_ids=tokens[:, None],
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def keep(self, rows: Tensor, unneeded: int) -> None:
        """Keep these rows, and drop the last `unneeded` positions of the source, which are padding."""
        self._cache.batch_select_indices(rows)
        end = self._mask.shape[1] - unneeded
        self._mask, self._hidden = self._mask[rows, :end], self._hidden[rows]
        if unneeded:
            layers: list[Any] = self._cache.cross_attention_cache.layers
            for layer in layers:
                layer.keys, layer.values = layer.keys[:, :, :-unneeded], layer.values[:, :, :-unneeded]
            self._hidden = self._hidden[:, :-unneeded]


class _Masks:
    """The masks of decoding, one token at a time.

    Transformers makes both from the positions at every token, by some thirty kernels. T5 also takes finished
    masks: that of the source changes when rows leave, and a token sees all tokens before it.
    """

    def __init__(self, model: Any) -> None:
        self.is_t5 = HAS_INTERFACE and why_not(model) is None
        self._source: tuple[Tensor | None, Tensor] = (None, torch.empty(0))

    def of_token(self, mask: Tensor, hidden: Tensor, length: int) -> dict[str, Tensor]:
        """Return the keywords of a forward pass.

        Args:
            mask: (batch, source length), 1 or 0.
            hidden: (batch, source length, d_model), the encoder's; longer than `mask` with prompt tuning.
            length: number of tokens that the decoder has read after this forward pass.
        """
        if not self.is_t5 or hidden.device.type not in MASKS_AHEAD or mask.shape != hidden.shape[:2]:
            return {"attention_mask": mask}
        if self._source[0] is not mask:
            hides = torch.finfo(hidden.dtype).min
            added = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(mask == 0, hides)
            self._source = mask, added[:, None, None]
            self._seen = hidden.new_zeros(1, 1, 1, 0)
        if self._seen.shape[3] < length:
            self._seen = hidden.new_zeros(1, 1, 1, 2 * length + INITIAL_CAPACITY)
        return {"attention_mask": self._source[1], "decoder_attention_mask": self._seen[..., :length]}


def _trailing_padding(mask: Tensor) -> int:
    """Return the number of positions at the end of a mask (batch, length) that are padding in all rows."""
    unneeded = mask.shape[1] - int(mask.sum(1).max())
    return unneeded if unneeded and not mask[:, -unneeded:].any() else 0
