"""TFMA's GAUC on KuaiRand-Pure's test split is NumPy's."""

import pathlib

import numpy as np
import pytest

from benchmarks.evaluation import kuairand
from data.spec import load_spec
from modules.metrics.activity import bucket_names, bucket_of
from modules.metrics.auc import auc
from modules.metrics.results import BASELINE, CANDIDATE, OVERALL, load_metrics
from tests.metrics.test_auc import pair_auc

DATA = pathlib.Path(__file__).parents[2] / "../shared/data/kuairand-pure"
SPEC = load_spec("kuairand_pure")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / kuairand.LOG).exists(), reason=f"no KuaiRand-Pure in {DATA}"),
]


@pytest.fixture(scope="module")
def targets():
    return kuairand.test_targets(DATA)


@pytest.fixture(scope="module")
def found(targets, tmp_path_factory):
    root = tmp_path_factory.mktemp("kuairand")
    kuairand.write_instances(targets, root / "eval.gz")
    for model in kuairand.MODELS:
        kuairand.write_model(model, root / model)
    models = [str(root / model) for model in kuairand.MODELS]
    kuairand.evaluate(SPEC, str(root / "eval.gz"), models, str(root / "evaluation"))
    return load_metrics(root / "evaluation")


def written_out(targets, label, score):
    """KEEP eq. 7 with each user's AUC by its definition: (gauc, users with both classes)."""
    weights, values = [], []
    for _, own in targets.groupby("user_id")[[label, score]]:
        y, p = own[label].to_numpy(), own[score].to_numpy()
        if 0 < y.mean() < 1:
            weights.append(len(y))
            values.append(pair_auc(y, p.astype(np.float64)))
    return np.average(values, weights=weights), len(values)


@pytest.mark.parametrize("task", ["click", "long_view", "like"])
@pytest.mark.parametrize("model", [CANDIDATE, BASELINE])
def test_gauc_is_numpys_to_1e_6(targets, found, task, model):
    label = f"label_{task}"
    score = f"score_{dict(zip((CANDIDATE, BASELINE), kuairand.MODELS, strict=True))[model]}_{task}"
    labelled = targets[targets[label].notna()]
    expected, users = written_out(labelled, label, score)
    assert found.value(task, "gauc", model) == pytest.approx(expected, abs=1e-6)
    assert found.value(task, "count", model) == len(labelled) == 130_835
    share = found.value(task, "gauc_user_share", model)
    assert share * labelled.user_id.nunique() == pytest.approx(users)
    if task == "click":
        assert users == 14_079  # As the data's README counts them.


@pytest.mark.parametrize("bucket", range(4))
def test_gauc_of_each_slice(targets, found, bucket):
    edges = SPEC.evaluation.activity_edges
    inside = targets[bucket_of(targets.activity, edges) == bucket]
    inside = inside[inside.label_click.notna()]
    expected, _ = written_out(inside, "label_click", "score_popularity_click")
    name = bucket_names(edges)[bucket]
    assert found.value("click", "gauc", slice_=name) == pytest.approx(expected, abs=1e-6)
    assert found.value("click", "count", slice_=name) == len(inside) > 0


def test_auc_is_exact_to_1e_4_and_popularity_beats_noise(targets, found):
    y = targets[targets.label_click.notna()]
    for model, score in zip((CANDIDATE, BASELINE), kuairand.MODELS, strict=True):
        exact = auc(y.label_click.to_numpy(), y[f"score_{score}_click"].to_numpy())
        assert found.value("click", "auc", model) == pytest.approx(exact, abs=1e-4)
    assert found.value("click", "auc") > found.value("click", "auc", BASELINE) + 0.02


def test_per_user_tasks_count_each_user_once(targets, found):
    assert found.value("full_active", "count") == targets.user_id.nunique()
    assert found.value("full_active", "auc") == 0.5  # The model answers 1/2 to all.
    assert found.slices == (OVERALL, *bucket_names(SPEC.evaluation.activity_edges))
