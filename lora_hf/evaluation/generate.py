"""Generate summaries: sources sorted into batches of similar length, results in the original order."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput

from lora_hf.adapters.active import adapter_rows, shrinking_batch
from lora_hf.adapters.kept import KeptWeights
from lora_hf.adapters.merge import merged_where_exact, merging_bytes
from lora_hf.adapters.mixed_batch import KeptStacks
from lora_hf.adapters.model_state import adapter_configs, offloaded_part, refuse_offloaded
from lora_hf.arguments import shown
from lora_hf.errors import UserError, counted
from lora_hf.evaluation.decoding import LargestScores, decoding_for, effective_config, greedy
from lora_hf.fast.packed import packed
from lora_hf.fast.t5 import faster, why_not
from lora_hf.memory import SMALLER_GENERATION, free_memory, out_of_memory_reported
from lora_hf.models.exported import ExportedModel
from lora_hf.models.languages import decode

ENCODER_TOKENS = 2048
"""Tokens that the encoder takes at a time on a CPU: activations stay in its cache, with less padding."""
logger = logging.getLogger(__name__)


class Observer:
    """Follows the generation of texts; a subclass overrides what it needs.

    Attributes:
        wants_tokens: whether `token` is to be called.
    """

    wants_tokens = False

    def token(self, source: int, token: int) -> None:
        """Take the next token of a source's output, also beyond its limit.

        Only the greedy search of `decoding.greedy` calls it: beams change until they end.
        """

    def output(self, source: int, tokens: list[int]) -> None:
        """Take all tokens of a source's output, with the end token if it has one and the engine writes it."""


def generate_summaries(
    model: Any,
    tokenizer: Any,
    sources: list[list[int]],
    max_new_tokens: int | list[int],
    batch_size: int = 64,
    batch_tokens: int = 16384,
    on_batch: Callable[[int], None] = lambda rows: None,
    fast_paths: bool = True,
    adapters: list[str | None] | None = None,
    stacks: KeptStacks | None = None,
    kept: KeptWeights | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> list[str]:
    """Generate a summary of each source.

    In float32 neither sorting nor batching nor the fast paths change a greedy token, unless two logits are
    equal up to rounding; in bfloat16 the shape of a batch alone can.

    Args:
        model: an encoder-decoder model, with or without adapters; it is put in evaluation mode. An exported
            model, which has no adapters, is batched in the same way.
        tokenizer: its tokenizer.
        sources: token ids, one list per dialogue.
        max_new_tokens: maximum length of a summary in tokens, for all or one per source; longer ones are cut.
        batch_size: maximum number of dialogues per batch.
        batch_tokens: maximum number of source tokens per batch, padding and beams included.
        on_batch: called after each batch with its number of rows.
        fast_paths: merge adapters on dense layers for the duration, restoring the weights bit for bit; pack
            weights on a CPU; drop finished rows from the batch; encode a batch in parts.
        adapters: name of the adapter for each source, None for the base; a batch may mix them. Without the
            list, the active adapters apply to all.
        stacks: what earlier calls have stacked of these adapters, if their weights do not change.
        kept: weights that earlier calls have merged and packed.
        observer: gets the tokens of each source.
        options: further keywords of `generate`, such as `num_beams`.

    Returns:
        One text per source, in the order of `sources`.

    Raises:
        UserError: an argument is not of this form, an option draws tokens or asks for another result, the
            model has adapters and accelerate keeps weights of it elsewhere, or memory runs out.
    """
    sources = _checked_sources(sources, model)
    limits = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(sources)
    _check_numbers(max_new_tokens=limits, batch_size=[batch_size], batch_tokens=[batch_tokens])
    for name, values in (("max_new_tokens", limits), ("adapters", adapters)):
        if values is not None and len(values) != len(sources):
            raise UserError(f"{name}: {len(values)} values for {len(sources)} sources; give one for each")
    _check_options(options)
    if isinstance(model, ExportedModel):
        return _by_engine(
            *(model, tokenizer, sources, limits, batch_size, batch_tokens, on_batch, observer, options)
        )
    model.eval()
    is_offloaded, device = _place(model)
    fast_paths = fast_paths and not is_offloaded  # they need the weights in place
    searched = options | {"do_sample": False}
    config = effective_config(model, searched)
    n = config.num_beams or 1
    decoding = decoding_for(model, searched) if fast_paths else None
    seen = LargestScores()
    if decoding is not greedy:  # which looks at its scores itself
        searched["logits_processor"] = [*(options.get("logits_processor") or ()), seen]
    searched["max_length"] = None  # Transformers warns if a checkpoint's own stands beside max_new_tokens
    fast = fast_generation(model, adapters is None, kept) if fast_paths else nullcontext()
    texts = [""] * len(sources)
    reported = out_of_memory_reported(lambda: f"writing {counted(len(sources), 'text')}", SMALLER_GENERATION)
    with reported, numbers_kept(model), fast, torch.inference_mode():
        for rows in _batches([len(ids) * n for ids in sources], batch_size, batch_tokens):
            inputs = padded([sources[i] for i in rows], tokenizer.pad_token_id, device)
            chosen = adapter_rows(model, [adapters[i] for i in rows], True, stacks) if adapters else None
            own = [limits[i] for i in rows]
            decode_batch = decoding
            if decoding is greedy and observer and observer.wants_tokens:
                decode_batch = partial(greedy, on_step=partial(_observe, observer, rows))
            with chosen or nullcontext():
                if fast_paths:
                    inputs["encoder_outputs"] = _encode(model, **inputs)
                tokens = model.generate(
                    **inputs, max_new_tokens=max(own), **searched, custom_generate=decode_batch
                )
            seen.check(model)
            tokens = _cut(tokens, own, tokenizer.pad_token_id)
            if observer:
                for i, row in zip(rows, tokens[:, 1:].tolist(), strict=True):
                    observer.output(i, _to_end(row[: limits[i]], config.eos_token_id))
            for i, text in zip(rows, decode(tokenizer, tokens), strict=True):
                texts[i] = text.strip()
            on_batch(len(rows))
    return texts


def _place(model: Any) -> tuple[bool, torch.device]:
    """Return whether accelerate fetches weights of a model while it runs, and the device of its inputs.

    Raises:
        UserError: it does, and the model has adapters, which need theirs in place.
    """
    if offloaded_part(model) is None:
        return False, model.device
    if adapter_configs(model):
        refuse_offloaded(model)
    return True, torch.device(getattr(getattr(model, "_hf_hook", None), "execution_device", None) or "cpu")


SAMPLING: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1,),
    "top_k": (0, 50),
    "top_p": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
"""Keywords of `generate` that draw tokens -> their values without effect, beside None."""
OTHER_RESULTS: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "return_dict_in_generate": (False,),
    "streamer": (),
}
"""Keywords of `generate` with which it returns something else than one row of tokens for each source."""


def _check_options(options: Mapping[str, Any]) -> None:
    given = options.get("generation_config")
    asked = options if given is None else given.to_diff_dict() | options
    for name, neutral in (SAMPLING | OTHER_RESULTS).items():
        if asked.get(name) not in (None, *neutral):
            why = "texts are written without drawing" if name in SAMPLING else "one text is returned for each"
            remedy = "remove it, or call the model's own `generate`"
            raise UserError(f"{name}={shown(asked[name])}: {why}: {remedy}")


def _checked_sources(sources: Any, model: Any) -> list[list[int]]:
    """Return the token ids of each source as lists; some are on a GPU.

    Raises:
        UserError: they are no lists of token ids of the model.
    """
    remedy = "pass lists of token ids, as encode_sources(texts, tokenizer, data).ids"
    if isinstance(sources, str) or not isinstance(sources, Iterable):
        raise UserError(f"sources={shown(sources)} are not token ids: {remedy}")
    of_model = None if isinstance(model, ExportedModel) else model.get_input_embeddings()
    known = getattr(of_model, "num_embeddings", None)
    rows = []
    for number, source in enumerate(sources):
        row = source.tolist() if hasattr(source, "tolist") else source
        if not isinstance(row, list | tuple) or not all(type(token) is int for token in row):
            raise UserError(f"sources[{number}]={shown(row)} is not a list of token ids: {remedy}")
        if not row:
            raise UserError(f"sources[{number}] has no token: {remedy}")
        if min(row) < 0 or (known is not None and max(row) >= known):
            token = min(row) if min(row) < 0 else max(row)
            raise UserError(
                f"sources[{number}] has the token {token}, and the model has {known} tokens: tokenize the "
                "texts with the model's own tokenizer"
            )
        rows.append(list(row))
    return rows


def _check_numbers(**given: list[Any]) -> None:
    """Refuse what is not a whole number of at least 1."""
    for name, values in given.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name}={shown(value)} must be a whole number of at least 1", name)


def _by_engine(
    model: ExportedModel,
    tokenizer: Any,
    sources: list[list[int]],
    limits: list[int],
    batch_size: int,
    batch_tokens: int,
    on_batch: Callable[[int], None],
    observer: Observer | None,
    options: dict[str, Any],
) -> list[str]:
    """Generate with an exported model; arguments of `generate_summaries`."""
    searched = model.options(options | {"do_sample": False})
    texts = [""] * len(sources)
    for rows in _batches([len(ids) * (searched.num_beams or 1) for ids in sources], batch_size, batch_tokens):
        written = model.generate_ids([sources[i] for i in rows], [limits[i] for i in rows], searched)
        for i, row, text in zip(rows, written, decode(tokenizer, written), strict=True):
            texts[i] = text.strip()
            if observer:
                observer.output(i, _to_end(row, searched.eos_token_id))
        on_batch(len(rows))
    return texts


def _observe(observer: Observer, rows: list[int], places: list[int], tokens: list[int]) -> None:
    """Pass on the tokens of one step; `rows` are the sources of the batch, `places` are rows of the batch."""
    for place, token in zip(places, tokens, strict=True):
        observer.token(rows[place], token)


def _to_end(tokens: list[int], ends: int | list[int] | None) -> list[int]:
    """Return the tokens up to the first end token, which is the last one; padding follows it."""
    known = ends if isinstance(ends, list) else [ends]
    return tokens[: next((at for at, token in enumerate(tokens, 1) if token in known), len(tokens))]


def _cut(tokens: Tensor, limits: list[int], pad: int) -> Tensor:
    """Return the tokens (rows, 1 + longest) with padding in place of those beyond each row's limit."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.masked_fill(places > torch.tensor(limits, device=tokens.device)[:, None], pad)


@contextmanager
def numbers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards give the modules the numbers back that they had as attributes.

    NLLB-MoE's routers keep the capacity that follows from the last batch, also one that was evaluated, and
    training goes by it.
    """
    kinds = (int, float, NoneType)
    before = [
        (module, {k: v for k, v in vars(module).items() if type(v) in kinds}) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, numbers in before:
            vars(module).update({k: v for k, v in numbers.items() if type(vars(module).get(k)) in kinds})


@contextmanager
def fast_generation(model: Any, merged: bool = True, kept: KeptWeights | None = None) -> Iterator[None]:
    """Inside the block, modules use their fast path and, if `merged`, adapters on dense layers are merged.

    They stay unmerged where the merged weights, beside the original ones, would take more than half of the
    free memory: the other half is for the keys, values and activations.

    Blocks may be nested; the outer one then does most of the work. `kept` has the merged and packed weights
    of earlier blocks, and takes those of this one.
    """
    reason = why_not(model)
    if reason:
        logger.debug("generation without fast paths for norm and activation: %s", reason)
    with ExitStack() as stack:
        if merged and _merging_fits(model, kept):
            stack.enter_context(merged_where_exact(model, kept))
        if not reason:
            stack.enter_context(faster(model))
        stack.enter_context(packed(model, kept))
        yield


def _merging_fits(model: Any, kept: KeptWeights | None) -> bool:
    needed, free = merging_bytes(model, kept), free_memory(model.device)
    if free is None or 2 * needed <= free:
        return True
    sizes = needed / 2**30, free / 2**30
    logger.info("adapters stay unmerged: merged weights would take %.1f of %.1f GiB that are free", *sizes)
    return False


def padded(sources: list[list[int]], pad: int, device: torch.device) -> dict[str, Any]:
    """Return input_ids and attention_mask, (rows, longest), padded on the right."""
    ids = pad_sequence([torch.tensor(row) for row in sources], batch_first=True, padding_value=pad)
    length = torch.tensor([len(row) for row in sources])
    mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _batches(lengths: list[int], size: int, tokens: int) -> Iterator[list[int]]:
    """Yield rows by decreasing length, as many at a time as the limits allow, at least one."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        fits = max(1, min(size, tokens // max(1, lengths[order[0]])))
        yield order[:fits]
        order = order[fits:]


def _encode(model: Any, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
    """Return the encoder's output; on a CPU, computed in parts, from rows sorted by decreasing length.

    It has the model's own class, whose further fields a model with experts reads.
    """
    encoder, lengths = model.get_encoder(), attention_mask.sum(1).tolist()
    tokens = ENCODER_TOKENS if input_ids.device.type == "cpu" else input_ids.numel()
    parts = []
    with shrinking_batch(model) as keep:
        for rows in _batches(lengths, len(lengths), tokens):
            keep(rows)
            longest = max(1, lengths[rows[0]])
            part = {"input_ids": input_ids[rows, :longest], "attention_mask": attention_mask[rows, :longest]}
            output = encoder(**part, return_dict=True)
            parts.append(output.last_hidden_state)
    widest = parts[0].shape[1]
    wide = [torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[1])) for part in parts]
    return type(output)(last_hidden_state=torch.cat(wide))
