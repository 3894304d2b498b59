"""The inference server: takes requests over HTTP and gRPC and runs them on one frozen base model with adapters."""
