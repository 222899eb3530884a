"""A Llama of `transformers` with random weights of our own generator; the global one is not touched."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from proxygap.base.language import ItemSpec
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.settings import HuggingFaceLanguageModel


def random_llama(settings: HuggingFaceLanguageModel, spec: ItemSpec, seed: int) -> LlamaForCausalLM:
    """A fresh model (Touvron et al. 2023): matrices normal with the configuration's deviation, norms one.

    It is laid out on the meta device first, where nothing is drawn.
    """
    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=spec.prompt_length + spec.max_tokens,
        tie_word_embeddings=settings.tied,
        pad_token_id=None,  # with one, the row of that token would never be learned
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    network.to_empty(device="cpu")
    network.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are no weights
    network.tie_weights()
    generator = torch_generator(seed, "language/hugging_face/init")
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, config.initializer_range, generator=generator)
            else:
                weight.fill_(1.0)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return network.to(dtype).eval()
