"""TensorFlow's, TF Serving's and the knowledge centre's API messages, without TensorFlow.

`api.pb` is a FileDescriptorSet made by `generate.py` from the `.proto` files here and the installed
tensorflow-serving-api. It is loaded into a private descriptor pool, so these classes live beside
TensorFlow's own in one process; both speak the same wire format.
"""

import functools
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

DESCRIPTORS = pathlib.Path(__file__).with_name("api.pb")


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    return pool


@functools.cache
def message_class(full_name: str) -> type[message.Message]:
    """The class of a message. Raises `KeyError` for a name the descriptor set doesn't hold.

    Args:
      full_name: with its package, e.g. `tensorflow.serving.PredictRequest`.
    """
    descriptor = _pool().FindMessageTypeByName(full_name)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_pool()).GetPrototype(descriptor)


ConfigProto = message_class("tensorflow.ConfigProto")
Example = message_class("tensorflow.Example")
RunOptions = message_class("tensorflow.RunOptions")
ShallowExample = message_class("universal.serving.ShallowExample")
MetaGraphSignatures = message_class("universal.serving.MetaGraphSignatures")
TensorProto = message_class("tensorflow.TensorProto")
BatchingParameters = message_class("tensorflow.serving.BatchingParameters")
ClassificationRequest = message_class("tensorflow.serving.ClassificationRequest")
ClassificationResponse = message_class("tensorflow.serving.ClassificationResponse")
ClassificationResult = message_class("tensorflow.serving.ClassificationResult")
GetModelMetadataRequest = message_class("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = message_class("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = message_class("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = message_class("tensorflow.serving.GetModelStatusResponse")
ModelServerConfig = message_class("tensorflow.serving.ModelServerConfig")
ModelSpec = message_class("tensorflow.serving.ModelSpec")
ModelVersionStatus = message_class("tensorflow.serving.ModelVersionStatus")
MonitoringConfig = message_class("tensorflow.serving.MonitoringConfig")
MultiInferenceRequest = message_class("tensorflow.serving.MultiInferenceRequest")
MultiInferenceResponse = message_class("tensorflow.serving.MultiInferenceResponse")
PredictRequest = message_class("tensorflow.serving.PredictRequest")
PredictResponse = message_class("tensorflow.serving.PredictResponse")
PredictionLog = message_class("tensorflow.serving.PredictionLog")
RegressionRequest = message_class("tensorflow.serving.RegressionRequest")
RegressionResponse = message_class("tensorflow.serving.RegressionResponse")
RegressionResult = message_class("tensorflow.serving.RegressionResult")
ReloadConfigRequest = message_class("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = message_class("tensorflow.serving.ReloadConfigResponse")
SSLConfig = message_class("tensorflow.serving.SSLConfig")
SignatureDefMap = message_class("tensorflow.serving.SignatureDefMap")
DeleteUserRequest = message_class("universal.knowledge.v1.DeleteUserRequest")
DeleteUserResponse = message_class("universal.knowledge.v1.DeleteUserResponse")
ListVersionsRequest = message_class("universal.knowledge.v1.ListVersionsRequest")
ListVersionsResponse = message_class("universal.knowledge.v1.ListVersionsResponse")
LookupRequest = message_class("universal.knowledge.v1.LookupRequest")
LookupResponse = message_class("universal.knowledge.v1.LookupResponse")
