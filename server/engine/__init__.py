"""Engines: token ids and adapter digests in, token ids out. No text, no names, no registry, no protocol."""
