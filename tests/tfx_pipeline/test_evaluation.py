"""The stock Evaluator over K targets an instance, against NumPy on the same targets."""

import numpy as np
import pytest
import tensorflow_model_analysis as tfma

from benchmarks.evaluation import kuairand
from modules.metrics.activity import bucket_names, bucket_of
from modules.metrics.results import BASELINE, CANDIDATE, OVERALL, load_metrics
from tests.metrics.instances import Targets, small_spec, write_model
from tests.metrics.test_auc import pair_auc, written_out_gauc
from tests.tfx_pipeline.evaluator_run import run_evaluator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def targets():
    return Targets()


@pytest.fixture(scope="module")
def runs(targets, tmp_path_factory):
    """A good model (nothing to compare with), a worse one, then the good one again."""
    root = tmp_path_factory.mktemp("evaluator")
    targets.write(root / "examples")
    write_model(root / "good")
    write_model(root / "bad", flipped=True)
    return [
        run_evaluator(root, root / "examples", root / model, small_spec())
        for model in ("good", "bad", "good")
    ]


@pytest.fixture(scope="module")
def first(runs):
    return load_metrics(runs[0][0])


def in_slice(targets, name):
    if name == OVERALL:
        return np.full(len(targets.user), True)
    edges = small_spec().evaluation.activity_edges
    return np.array(bucket_names(edges))[bucket_of(targets.activity, edges)][targets.user] == name


@pytest.mark.parametrize("slice_", [OVERALL, "[0, 10)", "[10, 20)", "20+"])
def test_binary_metrics_of_eval_targets_with_labels(targets, first, slice_):
    chosen = targets.is_eval & ~np.isnan(targets.click) & in_slice(targets, slice_)
    user, label, score = (a[chosen] for a in (targets.user, targets.click, targets.price))
    value = lambda name: first.value("click", name, slice_=slice_)  # noqa: E731
    assert value("count") == chosen.sum()
    assert value("gauc") == pytest.approx(written_out_gauc(user, label, score), abs=1e-6)
    assert value("auc") == pytest.approx(pair_auc(label, score), abs=4e-4)
    assert value("mean_label") == pytest.approx(label.mean())
    assert value("mean_prediction") == pytest.approx(score.mean(dtype=np.float64))
    log_loss = -np.where(label > 0, np.log(score), np.log(1 - score)).mean()
    assert value("log_loss") == pytest.approx(log_loss, rel=1e-4)
    both = [u for u in np.unique(user) if 0 < label[user == u].mean() < 1]
    assert value("gauc_user_share") == pytest.approx(len(both) / len(np.unique(user)))
    assert value("gauc_impression_share") == pytest.approx(np.isin(user, both).mean())
    oracle = targets.oracle[chosen]
    assert value("oracle_gauc") == pytest.approx(written_out_gauc(user, label, oracle), abs=1e-6)
    assert value("oracle_auc") == pytest.approx(pair_auc(label, oracle), abs=4e-4)


@pytest.mark.parametrize("slice_", [OVERALL, "[10, 20)"])
def test_other_kinds_of_task(targets, first, slice_):
    inside = targets.is_eval & in_slice(targets, slice_)
    vip = inside & ~np.isnan(targets.vip)
    activity = targets.activity[targets.user]
    assert first.value("vip", "count", slice_=slice_) == vip.sum()
    assert first.value("vip", "auc", slice_=slice_) == pytest.approx(
        pair_auc(targets.vip[vip], activity[vip]), abs=1e-4
    )
    assert np.isnan(first.value("vip", "gauc", slice_=slice_))  # One target a user.

    kind = inside & ~np.isnan(targets.kind)
    right = (targets.price[kind] * np.float32(3)).astype(int) == targets.kind[kind]
    assert first.value("kind", "accuracy", slice_=slice_) == pytest.approx(right.mean())
    assert first.value("kind", "log_loss", slice_=slice_) == pytest.approx(
        -np.log(np.where(right, 0.8, 0.1)).mean(), rel=1e-5
    )
    rating = inside & ~np.isnan(targets.rating)
    error = targets.price[rating].astype(np.float64) - targets.rating[rating]
    assert first.value("rating", "mse", slice_=slice_) == pytest.approx((error**2).mean())
    assert first.value("rating", "mae", slice_=slice_) == pytest.approx(np.abs(error).mean())


def test_blessing(runs):
    """Absolute thresholds hold from the first run on; later the last blessed model compares."""
    (_, blessed), (worse_uri, worse_blessed), (again_uri, again_blessed) = runs
    worse, again = load_metrics(worse_uri), load_metrics(again_uri)
    assert (blessed, worse_blessed, again_blessed) == (True, False, True)
    assert {(f.task, f.metric) for f in worse.failures} == {("click", "auc"), ("click", "gauc")}
    reasons = " ".join(f.reason for f in worse.failures)
    assert "is under 0.6000" in reasons and "under the last blessed model" in reasons
    assert not again.failures and again.blessed
    # The unblessed run didn't become the baseline.
    assert again.value("click", "auc", BASELINE) == again.value("click", "auc", CANDIDATE) > 0.6


def test_curves_and_slices(first, runs):
    assert first.slices == (OVERALL, "[0, 10)", "[10, 20)", "20+")
    assert not first.has_baseline and load_metrics(runs[1][0]).has_baseline
    curves = first.curves[CANDIDATE, "click"]
    area = np.trapz(curves.true_positive_rate[::-1], curves.false_positive_rate[::-1])
    assert area == pytest.approx(first.value("click", "auc"), abs=2e-3)
    assert (np.diff(curves.predicted) > 0).all()
    # Well calibrated by how it was made, but for noise and clipping.
    np.testing.assert_allclose(curves.predicted, curves.observed, atol=0.3)
    assert 0 < first.gap_closed("click") < 1


def test_first_model_under_the_thresholds_is_not_blessed(targets, tmp_path):
    targets.write(tmp_path / "examples")
    write_model(tmp_path / "bad", flipped=True)
    uri, blessed = run_evaluator(tmp_path, tmp_path / "examples", tmp_path / "bad", small_spec())
    assert not blessed
    assert [(f.task, f.metric) for f in load_metrics(uri).failures] == [
        ("click", "auc"),
        ("click", "gauc"),
    ]


def evaluate(tmp_path, spec, targets):
    targets.write(tmp_path / "examples")
    write_model(tmp_path / "model")
    examples = tmp_path / "examples/Split-eval/*"
    model = tmp_path / "model/Format-Serving"
    kuairand.evaluate(spec, str(examples), [str(model)], str(tmp_path / "evaluation"))
    return load_metrics(tmp_path / "evaluation")


def test_no_labelled_target_is_not_blessed_and_says_so(tmp_path):
    targets = Targets(num_users=20)
    targets.is_eval[:] = False
    with pytest.raises(ValueError, match="no target with a label"):
        evaluate(tmp_path, small_spec(), targets)
    assert not tfma.load_validation_result(str(tmp_path / "evaluation")).validation_ok


def test_one_class_is_not_blessed_and_says_why(tmp_path):
    targets = Targets(num_users=20)
    targets.vip[targets.vip == 1] = 0
    found = evaluate(tmp_path, small_spec(), targets)
    assert not found.blessed
    assert [f.task for f in found.failures if "can't be computed" in f.reason] == ["vip"]


def test_a_prediction_that_is_no_number_names_the_task(tmp_path):
    targets = Targets(num_users=20)
    targets.price[:] = np.nan
    with pytest.raises(Exception, match="prediction/click/: a labelled target has no finite value"):
        evaluate(tmp_path, small_spec(), targets)


def test_a_task_of_another_spec_is_refused(tmp_path):
    spec = small_spec(tasks=[{"name": "buy", "label": "bought"}])
    with pytest.raises(Exception, match="the instances have no label_buy"):
        evaluate(tmp_path, spec, Targets(num_users=20))
