"""PredictionService.GetModelMetadata and ModelService.GetModelStatus."""

from __future__ import annotations

import math

import grpc
from google.protobuf import message

from serving import errors, protos
from serving.errors import invalid
from serving.server.models import Models
from serving.server.version import Version

SIGNATURE_DEF = "signature_def"


def get_model_metadata(
    models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a GetModelMetadataRequest with the model's signatures.

    Raises:
      errors.ServingError: INVALID_ARGUMENT no or an unknown metadata field, NOT_FOUND.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")
    signatures = protos.SignatureDefMap()
    with models.use(request.model_spec) as used:
        for name, signature in used.servable.signatures.items():
            signatures.signature_def[name].MergeFrom(signature)
    response = protos.GetModelMetadataResponse()
    response.model_spec.name = used.name
    response.model_spec.version.value = used.version
    packed = response.metadata[SIGNATURE_DEF]
    packed.type_url = f"type.googleapis.com/{signatures.DESCRIPTOR.full_name}"
    packed.value = signatures.SerializeToString()
    return response


def get_model_status(
    models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a GetModelStatusRequest: one version's state, or all versions', newest first.

    Raises:
      errors.ServingError: NOT_FOUND.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name = request.model_spec.name
    number = models.version_number(request.model_spec)
    model = models.find(request.model_spec)
    known = model.versions() if model else []
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
    proto.status.SetInParent()  # present, and OK unless it says otherwise
    if version.error:
        proto.status.error_code = version.error.code.value[0]
        proto.status.error_message = version.error.message
