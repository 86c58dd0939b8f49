"""Health and reflection, with the clients that grpcio ships for them."""

import grpc
import pytest
from conftest import TIMEOUT, details, fails
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def health(channel):
    return health_pb2_grpc.HealthStub(channel)


def test_check(health):
    for service in ("", "ringlog.v1.Log", "ringlog.v1.Admin"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert answer.status == SERVING
    request = health_pb2.HealthCheckRequest(service="nobody")
    error = fails(grpc.StatusCode.NOT_FOUND, lambda: health.Check(request, timeout=TIMEOUT))
    assert details(error)["ErrorInfo"].reason == "UNKNOWN_SERVICE"


def test_watch(health):
    for service, status in (("", SERVING), ("ringlog.v1.Log", SERVING), ("nobody", SERVICE_UNKNOWN)):
        stream = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert next(stream).status == status
        stream.cancel()


def test_reflection_lists_and_resolves(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert services == {
        "ringlog.v1.Log",
        "ringlog.v1.Admin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = descriptor_pool.DescriptorPool(database)
    log = pool.FindServiceByName("ringlog.v1.Log")
    assert log.FindMethodByName("ProduceStream").input_type.full_name == "ringlog.v1.ProduceStreamRequest"
    assert log.FindMethodByName("Consume").output_type.fields_by_name["records"].message_type.name == "Record"
    # One whose file imports others.
    status = pool.FindMessageTypeByName("google.rpc.Status")
    assert status.fields_by_name["details"].message_type.full_name == "google.protobuf.Any"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection(channel, version):
    """The messages of the two versions are the same on the wire."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(host="h", list_services=""),
        reflection_pb2.ServerReflectionRequest(file_by_filename="ringlog/v1/log.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="ringlog.v1.Log.Produce"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nobody.proto"),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="ringlog.v1.Record"),
    ]
    answers = list(call(iter(requests), timeout=TIMEOUT))
    assert [answer.original_request for answer in answers] == requests
    kinds = [answer.WhichOneof("message_response") for answer in answers]
    expected = ["list_services_response"] + ["file_descriptor_response"] * 2 + ["error_response"] * 2
    assert kinds == expected
    assert answers[3].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_stub_of_grpcio(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = next(stub.ServerReflectionInfo(requests, timeout=TIMEOUT))
    assert len(answer.list_services_response.service) == 5
