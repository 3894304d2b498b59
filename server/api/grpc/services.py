"""Our services, added to whatever takes their methods: a server with a port, or one within the process."""

from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio

from medley.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from server.api.grpc.adapters import AdapterServicer
from server.api.grpc.config import GrpcConfig
from server.api.grpc.evaluation import EvaluationServicer
from server.api.grpc.inference import InferenceServicer
from server.api.grpc.rollouts import RolloutServicer
from server.service.door import Services

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for file in (inference_pb2, adapter_pb2, rollout_pb2, evaluation_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
SERVICE_NAMES = tuple(service.full_name for service in SERVICES)


def add_services(server: aio.Server, services: Services, config: GrpcConfig) -> None:
    """Add them to ``server``."""
    inference = InferenceServicer(services.inference, config.stall_timeout_s)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    adapters = AdapterServicer(services.adapters, services.uploads, config.stall_timeout_s)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, server)
    rollout_pb2_grpc.add_RolloutServiceServicer_to_server(RolloutServicer(services.rollouts), server)
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(EvaluationServicer(services.feedback), server)
