"""Prompt tuning (Lester et al., arXiv:2104.08691): n learned embeddings P before the encoder's input.

    encoder([P; E(ids)]) under the mask [1; mask], and the decoder attends to all n + length outputs

Hooks rather than wrappers: `generate` takes the encoder out of the model, inspects its signature and reads a
dozen of its attributes, so a stand-in would have to show all of them. The encoder's hook makes room for P,
the embeddings' puts it there, and the decoder's completes the mask of cross-attention, which the model passes
on as the caller gave it. So P goes through all that the encoder does to the embeddings of ids: Pegasus and
Marian scale them, M2M100 computes positions from the ids. P is one module of the encoder, float32, cast to
the embeddings' dtype at use.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.baselines.checkpoint_io import Extra, record_baseline
from lora_hf.errors import UserError

COMMON_TOKENS = 5000
"""Initial embeddings come from these: a tokenizer's first tokens are its most frequent (section 3.2)."""
SPECIAL = ("pad", "bos", "eos", "decoder_start")
BOUND = 0.5
"""Bound of the uniform initialization (section 3.2)."""
MASKS = ("encoder_attention_mask", "encoder_padding_mask")
"""Names of the mask of cross-attention in a decoder's forward; the second is FSMT's, passed by position."""
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Prompt(Extra):
    """P (n, d_model), and the three hooks that use it.

    Args:
        initial: (n, d_model), float32.
        token: an id that holds the places of P while the encoder computes positions.
        scale: factor by which the embeddings' module multiplies its rows.
    """

    def __init__(self, initial: Tensor, token: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial)
        self.token, self.scale = token, scale
        self._awaits_embeddings = False

    def before_encoder(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Extend ids (batch, length) to (batch, n + length) and the mask; `after_embeddings` puts P there.

        Raises:
            UserError: embeddings are given to an encoder that scales those of ids itself.
        """
        ids = args[0] if args else kwargs.get("input_ids")
        changed: dict[str, Any] = {"attention_mask": self._extended(kwargs.get("attention_mask"))}
        if ids is not None:
            places = ids.new_full((len(ids), len(self.weight)), self.token)
            changed["input_ids"] = torch.cat([places, ids], dim=1)
            self._awaits_embeddings = True
        elif self.scale == 1 and getattr(encoder, "embed_scale", None) in (None, 1):
            embedded = kwargs["inputs_embeds"]
            changed["inputs_embeds"] = torch.cat([self._rows(embedded), embedded], dim=1)
        else:
            raise UserError("method=prompt_tuning: this model scales embeddings; give it input_ids")
        return (), {**kwargs, **changed}

    def after_embeddings(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        """Put P at the first n places of (batch, n + length, d_model), once per call of the encoder."""
        if not self._awaits_embeddings:
            return None
        self._awaits_embeddings = False
        return torch.cat([self._rows(embedded), embedded[:, len(self.weight) :]], dim=1)

    def _rows(self, embedded: Tensor) -> Tensor:
        """Return P (batch, n, d_model) as the embeddings' module would give it."""
        prompt = self.weight if self.scale == 1 else self.weight * self.scale
        return prompt.to(embedded.dtype).expand(len(embedded), -1, -1)

    def before_decoder(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Extend the mask over the encoder's outputs (batch, n + length, d_model)."""
        self._awaits_embeddings = False  # the decoder may share the module of the embeddings
        names = list(signature(decoder.forward).parameters)
        mask = next((name for name in MASKS if name in names), MASKS[0])
        if mask in names[: len(args)]:
            place = names.index(mask)
            return (*args[:place], self._extended(args[place]), *args[place + 1 :]), kwargs
        return args, {**kwargs, mask: self._extended(kwargs.get(mask))}

    def _extended(self, mask: Tensor | None) -> Tensor | None:
        """Extend a mask (batch, length) to (batch, n + length) by n ones; None means all ones."""
        return None if mask is None else torch.cat([mask.new_ones(len(mask), len(self.weight)), mask], dim=1)


def stacks_of(model: Any) -> tuple[Any, Any]:
    """Return the encoder and the decoder.

    Raises:
        UserError: the model lacks one of them.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"method=prompt_tuning: {type(model).__name__} is not an encoder-decoder model")
    return model.get_encoder(), model.get_decoder()


def add_prompt(model: Any, num_virtual_tokens: int, init: str, scaled: bool = True) -> None:
    """Put a prompt before the encoder's input, in place; the base is frozen, the prompt trains.

    Args:
        model: an encoder-decoder model, in floating point or 4 bits.
        num_virtual_tokens: n.
        init: `vocab` or `random`.
        scaled: multiply P as the model multiplies its embeddings; False for prompts of before it was.

    Raises:
        UserError: the model is not an encoder-decoder, or already has adapters or a baseline.
    """
    encoder, decoder = stacks_of(model)
    module = getattr(encoder, "get_input_embeddings", model.get_input_embeddings)()  # FSMT's has none
    embeddings, scale = module.weight, _scale(module) if scaled else 1.0
    settings: dict[str, Any] = {"num_virtual_tokens": num_virtual_tokens, "init": init}
    record_baseline(model, "prompt_tuning", settings | ({} if scale == 1 else {"scaled": True}))
    values = embeddings.detach() if embeddings.is_meta else embeddings.detach().cpu()  # meta: only counted
    initial = INITIALIZATIONS[init](model, values.float(), num_virtual_tokens)
    special = _special(model) | {module.padding_idx}
    token = next(token for token in range(len(embeddings)) if token not in special)
    prompt = Prompt(initial.to(embeddings.device), token, scale)
    encoder.prompt = prompt
    encoder.register_forward_pre_hook(prompt.before_encoder, with_kwargs=True)
    module.register_forward_hook(prompt.after_embeddings)
    decoder.register_forward_pre_hook(prompt.before_decoder, with_kwargs=True)


def _scale(embeddings: Any) -> float:
    """Return the factor by which a module multiplies its rows; T5Gemma 2 has it as a buffer too."""
    return float(getattr(embeddings, "scalar_embed_scale", getattr(embeddings, "embed_scale", 1.0)))


def _special(model: Any) -> set[Any]:
    return {getattr(model.config, f"{name}_token_id", None) for name in SPECIAL}  # not all have all


def from_vocabulary(model: Any, embeddings: Tensor, n: int) -> Tensor:
    """Return the embeddings of n random tokens, (n, d_model), without padding and end of text."""
    special = _special(model)
    tokens = torch.tensor([t for t in range(min(len(embeddings), COMMON_TOKENS)) if t not in special])
    return embeddings[tokens[torch.randint(len(tokens), (n,))]]


def uniform(model: Any, embeddings: Tensor, n: int) -> Tensor:
    """Draw (n, d_model) uniformly in ±0.5."""
    return torch.empty(n, embeddings.shape[1]).uniform_(-BOUND, BOUND)


INITIALIZATIONS = {"vocab": from_vocabulary, "random": uniform}
