"""The server's nouns: requests, sampling, outputs and errors. No torch, no input or output, no protocol."""
