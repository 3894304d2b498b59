"""The HTTP front end: our own routes, OpenAI's, uploads and operations, over FastAPI. Does not know gRPC."""
