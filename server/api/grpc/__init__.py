"""The gRPC front end: ``medley.v1``, health and reflection, over ``grpc.aio``. Does not know HTTP."""
