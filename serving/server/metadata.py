"""PredictionService.GetModelMetadata and ModelService.GetModelStatus."""

from __future__ import annotations

import grpc
from google.protobuf import message

from serving import errors, protos
from serving.server import requests
from serving.server.version import Version

SIGNATURE_DEF = "signature_def"


def get_model_metadata(models: requests.Models, request: message.Message) -> message.Message:
    """Answers a GetModelMetadataRequest with the model's signatures.

    Raises:
      errors.ServingError: INVALID_ARGUMENT no or an unknown metadata field, NOT_FOUND.
    """
    model = requests.find_model(models, request)
    if not request.metadata_field:
        raise requests.invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise requests.invalid(f"Metadata field {field} is not supported")
    signatures = protos.SignatureDefMap()
    with model.use(requests.version_number(request)) as (version, saved_model):
        for name, signature in saved_model.signatures.items():
            signatures.signature_def[name].MergeFrom(signature)
    response = protos.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = version
    packed = response.metadata[SIGNATURE_DEF]
    packed.type_url = f"type.googleapis.com/{signatures.DESCRIPTOR.full_name}"
    packed.value = signatures.SerializeToString()
    return response


def get_model_status(models: requests.Models, request: message.Message) -> message.Message:
    """Answers a GetModelStatusRequest: one version's state, or all versions', newest first.

    Raises:
      errors.ServingError: NOT_FOUND.
    """
    if not request.HasField("model_spec"):
        raise requests.invalid("Missing ModelSpec")
    name = request.model_spec.name
    number = requests.version_number(request)
    known = models[name].versions() if name in models else []
    wanted = [v for v in known if number is None or v.number == number]
    if not wanted:
        what = "any versions" if number is None else f"version {number}"
        raise errors.ServingError(
            grpc.StatusCode.NOT_FOUND, f"Could not find {what} of model {name}"
        )
    response = protos.GetModelStatusResponse()
    for version in wanted:
        _write_status(version, response.model_version_status.add())
    return response


def _write_status(version: Version, proto: message.Message) -> None:
    proto.version = version.number
    proto.state = version.state
    if version.error:
        proto.status.error_code = version.error.code.value[0]
        proto.status.error_message = version.error.message
