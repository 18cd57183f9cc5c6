"""Language models of ``transformers`` from random initial weights."""

from __future__ import annotations

from vtrain.engine.jobs.program import Program


def gpt2(
    vocab: int = 256, block: int = 64, layers: int = 4, width: int = 128, heads: int = 4, dropout: float = 0.1
) -> Program:
    """GPT-2's architecture on samples ``{"input_ids", "labels"}``.

    Args:
        vocab: tokens.
        block: longest sequence.
        layers, width, heads: size.
        dropout: probability of dropping, in all of its places.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab, n_positions=block, n_layer=layers, n_embd=width, n_head=heads, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return Program(model)
