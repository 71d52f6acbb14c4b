"""A gRPC client that knows nothing but what the server's reflection tells it.

reflection_client.py ADDRESS: a line `services`, or `SERVICE/METHOD {request as JSON}`; an answer is one JSON value a line.
"""

import json
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    # A proxy of the environment is not for loopback.
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)

    def call(path: str, request: str) -> object:
        service, method_name = path.split("/")
        method = pool.FindServiceByName(service).FindMethodByName(method_name)
        request_type = message_factory.GetMessageClass(method.input_type)
        response_type = message_factory.GetMessageClass(method.output_type)
        stub = channel.unary_unary(
            f"/{path}", request_serializer=request_type.SerializeToString, response_deserializer=response_type.FromString
        )
        try:
            response = stub(json_format.Parse(request, request_type(), descriptor_pool=pool), timeout=60)
        except grpc.RpcError as error:
            return {"code": error.code().name, "message": error.details()}
        return json_format.MessageToDict(response, preserving_proto_field_name=True, descriptor_pool=pool)

    for line in sys.stdin:
        command, _, request = line.strip().partition(" ")
        answer = sorted(database.get_services()) if command == "services" else call(command, request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
