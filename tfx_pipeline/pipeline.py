"""The graph: from events to a served, evaluated model (DESIGN §5).

Every node gets the spec, and a hash of the code it runs: they are part of TFX's cache key, so
a rerun starts at the first node whose data, spec or code changed. Thresholds are the Evaluator's
alone: with others, it starts there.
"""

from __future__ import annotations

import hashlib
import json

from tfx.components.evaluator.component import Evaluator
from tfx.components.pusher.component import Pusher
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2, trainer_pb2, transform_pb2
from tfx.types.channel import BaseChannel, Channel
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelBlessing

from data import sources
from data.spec import Spec, Thresholds
from modules.metrics.eval_config import eval_config
from modules.training.cluster.config import Cluster
from tfx_pipeline import baselines, fingerprint
from tfx_pipeline.components.data_validator import DataValidator
from tfx_pipeline.components.sequence_example_gen import SequenceExampleGen
from tfx_pipeline.components.serving_check import ServingCheck
from tfx_pipeline.components.spec_schema import SpecSchema
from tfx_pipeline.components.user_embeddings import UserEmbeddings
from tfx_pipeline.layout import Layout

# More in-process Beam workers gain nothing here; processes pay 20-30 s a node for importing TF.
_BEAM_ARGS = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]
_SPLITS = ["train", "eval"]
ONE_PROCESS = Cluster()


def create_pipeline(
    spec: Spec, data_root: str, layout: Layout, cluster: Cluster = ONE_PROCESS
) -> Pipeline:
    """Builds the graph.

    Args:
      spec: everything the nodes are derived from.
      data_root: folder that the spec's relative source paths start at.
      layout: where artifacts, metadata and the pushed model go.
      cluster: where the Trainers train.

    Raises:
      SourceError: there is no such data.
    """
    unjudged = _without_thresholds(spec)
    data = _data_nodes(unjudged, data_root, layout)
    examples = data["SequenceExampleGen"].outputs["examples"]
    schema = data["SpecSchema"].outputs["schema"]
    training = _training_nodes(unjudged, layout, cluster, examples, schema)
    model = training["Finetune"].outputs["model"]
    release = _release_nodes(spec, layout, examples, schema, model)
    training["Transform"].add_upstream_node(data["DataValidator"])
    return Pipeline(
        pipeline_name=pipeline_name(spec),
        pipeline_root=str(layout.artifacts),
        components=[*data.values(), *training.values(), *release.values()],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(layout.metadata)),
        enable_cache=True,
        beam_pipeline_args=_BEAM_ARGS,
    )


def pipeline_name(spec: Spec) -> str:
    """Names the line of runs whose models and statistics compare with each other.

    Other channels or tasks make other features and outputs: such a run starts a new line,
    without a baseline.
    """
    interface = [c.model_dump(mode="json") for c in spec.channels]
    heads = {"name", "per", "type", "classes"}
    interface += [t.model_dump(mode="json", include=heads) for t in spec.tasks]
    return f"{spec.name}.{hashlib.sha256(json.dumps(interface).encode()).hexdigest()[:8]}"


def _without_thresholds(spec: Spec) -> Spec:
    """For all nodes but the Evaluator: who asks more of a model needs no other model for that."""
    tasks = (task.model_copy(update={"thresholds": Thresholds()}) for task in spec.tasks)
    return spec.model_copy(update={"tasks": tuple(tasks)})


def _data_nodes(spec: Spec, data_root: str, layout: Layout) -> dict[str, BaseNode]:
    ingest = SequenceExampleGen(
        spec=spec.model_dump_json(),
        data_root=data_root,
        dead_letter_dir=str(layout.dead_letters),
        input_fingerprint=sources.fingerprint(spec, data_root),
    )
    _label(ingest, "data", "tfx_pipeline/components/sequence_example_gen.py")
    examples = ingest.outputs["examples"]
    schema = SpecSchema(spec=spec.model_dump_json(), code=fingerprint.of_code("data"))
    statistics = StatisticsGen(examples=examples, schema=schema.outputs["schema"])
    accepted = Resolver(
        strategy_class=baselines.LatestAcceptedStatistics,
        config={"validator": DataValidator.__name__},
        current=statistics.outputs["statistics"],
        statistics=Channel(type=ExampleStatistics),
    ).with_id("LatestAccepted")
    validator = DataValidator(
        spec=spec.model_dump_json(),
        code=fingerprint.of_code("data", "tfx_pipeline/components/data_validator.py"),
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        previous_statistics=accepted.outputs["statistics"],
    )
    return _by_id(ingest, schema, statistics, accepted, validator)


def _training_nodes(
    spec: Spec, layout: Layout, cluster: Cluster, examples: BaseChannel, schema: BaseChannel
) -> dict[str, BaseNode]:
    config = {
        "spec": spec.model_dump_json(),
        "code": fingerprint.of_code(*fingerprint.SPEC, "modules"),
    }
    training = config | {
        "cluster": cluster.model_dump(mode="json"),
        "state": str(layout.training),
    }
    transform = Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="modules.preprocessing.preprocessing_fn",
        # Under a time split an eval instance holds training events too: both are analysed, and
        # the preprocessing function looks at training events only.
        splits_config=transform_pb2.SplitsConfig(analyze=_SPLITS, transform=_SPLITS),
        disable_statistics=True,
        custom_config=config,
    )

    def trainer(phase: str, base_model: BaseChannel | None) -> Trainer:
        return Trainer(
            examples=transform.outputs["transformed_examples"],
            transform_graph=transform.outputs["transform_graph"],
            schema=schema,
            base_model=base_model,
            run_fn=f"modules.training.{phase}.run_fn",
            train_args=trainer_pb2.TrainArgs(splits=["train"]),
            eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
            custom_config=training,
        ).with_id(phase.capitalize())

    if not spec.training.pretrain.epochs:
        return _by_id(transform, trainer("finetune", base_model=None))
    pretrain = trainer("pretrain", base_model=None)
    return _by_id(transform, pretrain, trainer("finetune", pretrain.outputs["model"]))


def _release_nodes(
    spec: Spec, layout: Layout, examples: BaseChannel, schema: BaseChannel, model: BaseChannel
) -> dict[str, BaseNode]:
    blessed = Resolver(
        strategy_class=baselines.LatestBlessedModel,
        candidate=model,
        model=Channel(type=Model),
        model_blessing=Channel(type=ModelBlessing),
    ).with_id("LatestBlessed")
    evaluator = Evaluator(
        examples=examples,
        example_splits=["eval"],
        model=model,
        baseline_model=blessed.outputs["model"],
        eval_config=eval_config(spec),
        schema=schema,
        module_path="tfx_pipeline.evaluation",
    )
    _label(evaluator, *fingerprint.SPEC, "modules/metrics", "tfx_pipeline/evaluation.py")
    check = ServingCheck(
        model=model,
        examples=examples,
        spec=_without_thresholds(spec).model_dump_json(),
        code=fingerprint.of_code("serving", "tfx_pipeline/components/serving_check.py"),
    )
    pusher = Pusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=check.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=str(layout.serving / spec.name)
            )
        ),
    )
    embeddings = UserEmbeddings(
        examples=examples,
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        pushed_model=pusher.outputs["pushed_model"],
        destination=str(layout.embeddings),
        knowledge=str(layout.knowledge),
    )
    _label(embeddings, "tfx_pipeline/components/user_embeddings.py")
    return _by_id(blessed, evaluator, check, pusher, embeddings)


def _by_id(*nodes: BaseNode) -> dict[str, BaseNode]:
    return {node.id: node for node in nodes}


def _label(node: BaseNode, *code: str) -> None:
    """Puts the hash of a Beam node's code into its cache key, as a label of its Beam job."""
    node.with_beam_pipeline_args([f"--labels=code={fingerprint.of_code(*code)}"])
