"""Prompt tuning (Lester et al., arXiv:2104.08691): n learned embeddings P before the encoder's input.

    encoder([P; E(ids)]) under the mask [1; mask], and the decoder attends to all n + length outputs

Two hooks rather than wrappers: `generate` takes the encoder out of the model, inspects its signature and
reads a dozen of its attributes, so a stand-in would have to show all of them. The encoder's hook prepends P,
the decoder's completes the mask of cross-attention, which the model passes on as the caller gave it. P is
one module of the encoder, float32, cast to the embeddings' dtype at use.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.baselines.checkpoint_io import Extra, claim
from lora_hf.errors import UserError

COMMON_TOKENS = 5000
"""Initial embeddings come from these: a tokenizer's first tokens are its most frequent (section 3.2)."""
SPECIAL = ("pad", "bos", "eos", "decoder_start")
BOUND = 0.5
"""Bound of the uniform initialization (section 3.2)."""
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Prompt(Extra):
    """P (n, d_model), and the two hooks that use it.

    Args:
        initial: (n, d_model), float32.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial)

    def before_encoder(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Replace ids (batch, length) by embeddings (batch, n + length, d_model); extend the mask."""
        ids, embedded = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if embedded is None:
            embedded = encoder.get_input_embeddings()(args[0] if args else ids)
        prompt = self.weight.to(embedded.dtype).expand(len(embedded), -1, -1)
        changed = {"input_ids": None, "inputs_embeds": torch.cat([prompt, embedded], dim=1)}
        mask = self._extended(kwargs.get("attention_mask"))
        return (), {**kwargs, **changed, "attention_mask": mask}

    def before_decoder(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Extend the mask over the encoder's outputs (batch, n + length, d_model)."""
        return args, {
            **kwargs,
            "encoder_attention_mask": self._extended(kwargs.get("encoder_attention_mask")),
        }

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


def add_prompt(model: Any, num_virtual_tokens: int, init: str) -> None:
    """Put a prompt before the encoder's input, in place; the base is frozen, the prompt trains.

    Args:
        model: an encoder-decoder model, in floating point or 4 bits.
        num_virtual_tokens: n.
        init: `vocab` or `random`.

    Raises:
        UserError: the model is not an encoder-decoder, or already has adapters or a baseline.
    """
    encoder, decoder = stacks_of(model)
    embeddings = encoder.get_input_embeddings().weight
    claim(model, "prompt_tuning", {"num_virtual_tokens": num_virtual_tokens, "init": init})
    values = embeddings.detach() if embeddings.is_meta else embeddings.detach().cpu()  # meta: only counted
    initial = INITIALIZATIONS[init](model, values.float(), num_virtual_tokens)
    prompt = Prompt(initial.to(embeddings.device))
    encoder.prompt = prompt
    encoder.register_forward_pre_hook(prompt.before_encoder, with_kwargs=True)
    decoder.register_forward_pre_hook(prompt.before_decoder, with_kwargs=True)


def from_vocabulary(model: Any, embeddings: Tensor, n: int) -> Tensor:
    """Return the embeddings of n random tokens, (n, d_model), without padding and end of text."""
    special = {getattr(model.config, f"{name}_token_id", None) for name in SPECIAL}  # not all have all
    tokens = torch.tensor([t for t in range(min(len(embeddings), COMMON_TOKENS)) if t not in special])
    return embeddings[tokens[torch.randint(len(tokens), (n,))]]


def uniform(model: Any, embeddings: Tensor, n: int) -> Tensor:
    """Draw (n, d_model) uniformly in ±0.5."""
    return torch.empty(n, embeddings.shape[1]).uniform_(-BOUND, BOUND)


INITIALIZATIONS = {"vocab": from_vocabulary, "random": uniform}
