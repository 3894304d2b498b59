"""The files that deploy on Ray and Kubernetes: Ray Serve takes them, and they say what the code says."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.runtime.ray_app import APPLICATION, GRPC_SERVICERS, REPLICA, build
from server.settings import Settings

FOLDER = Path(__file__).parents[4] / "docs" / "deploy"
SERVE = FOLDER / "serve.yaml"
KUBERNETES = "1.31"
DATABASE = "postgresql://db/medley"
# Of the operator's RayService and RayCluster, version ray.io/v1, as far as the file uses them.
SERVICE_FIELDS = {"serveConfigV2", "rayClusterConfig"}
CLUSTER_FIELDS = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"rayStartParams", "template"}
WORKER_FIELDS = HEAD_FIELDS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def _serve_config() -> dict[str, Any]:
    return dict(yaml.safe_load(SERVE.read_text()))


def _documents() -> dict[tuple[str, str], dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def _pods() -> list[dict[str, Any]]:
    cluster = _documents()["RayService", "medley"]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def test_serve_config_is_taken_by_ray_serve() -> None:
    config = ServeDeploySchema.model_validate(_serve_config())
    (application,) = config.applications
    assert application.name == APPLICATION
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert config.grpc_options.grpc_servicer_functions == GRPC_SERVICERS
    assert not config.grpc_options.enable_reflection
    assert len(gRPCOptions(grpc_servicer_functions=GRPC_SERVICERS).grpc_servicer_func_callable) == 4


def test_arguments_of_the_serve_config_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_REGISTRY__URL", DATABASE)
    (application,) = _serve_config()["applications"]
    door = build(application["args"])
    replica = door._bound_deployment.init_args[0]._bound_deployment
    assert replica.name == REPLICA
    settings = Settings(**replica.init_args[0])
    assert settings.registry.url == DATABASE
    assert settings.ray.max_num_replicas == 8
    assert replica._deployment_config.autoscaling_config.max_replicas == 8
    assert replica._deployment_config.max_ongoing_requests == settings.ray.max_num_requests


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"ray\.num_replica"):
        build({"ray": {"num_replica": 2}})
    with pytest.raises(FailedPreconditionError, match="PostgreSQL"):
        build({"ray": {"num_replicas": 2}})


def test_kubernetes_file_has_the_same_serve_config() -> None:
    (service,) = (document for (kind, _), document in _documents().items() if kind == "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == _serve_config()


def test_kubernetes_objects_keep_to_their_schemas() -> None:
    for (kind, _), document in _documents().items():
        if kind != "RayService":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for pod in _pods():
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | pod
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_ray_service_has_known_fields() -> None:
    service = _documents()["RayService", "medley"]
    assert service["apiVersion"] == "ray.io/v1"
    spec = service["spec"]
    assert set(spec) == SERVICE_FIELDS
    cluster = spec["rayClusterConfig"]
    assert set(cluster) == CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) == HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKER_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # Ray takes these as options of its command, which are text.
    starts = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for start in starts for value in start["rayStartParams"].values())


def test_cluster_has_the_version_of_the_lock_and_room_for_a_replica_a_pod() -> None:
    lock = (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
    cluster = _documents()["RayService", "medley"]["spec"]["rayClusterConfig"]
    assert f"ray=={cluster['rayVersion']}" in lock
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    ray = _serve_config()["applications"][0]["args"]["ray"]
    assert float(worker["resources"]["requests"]["cpu"]) >= ray["num_cpus"]
    assert group["maxReplicas"] == ray["max_num_replicas"]


def test_every_pod_has_the_secret_and_both_ports() -> None:
    for pod in _pods():
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "medley"}}]
        assert {8000, 50051} <= {port["containerPort"] for port in container["ports"]}
    secret = _documents()["Secret", "medley"]
    assert "MEDLEY_REGISTRY__URL" in secret["stringData"]
