"""A T5 of a few thousand weights, as a config alone."""

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Threads inside an operation of a tiny model cost more than they save."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_shape():
    from transformers import T5Config

    return T5Config(
        vocab_size=400,
        d_model=32,
        d_kv=8,
        num_heads=2,
        d_ff=48,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
