"""The native engine: encoder-decoder models with any mix of adapters in one batch, on CPU or GPU.

Imports only torch, transformers, numpy and safetensors beside the standard library, so it also runs on a bare box.
"""
