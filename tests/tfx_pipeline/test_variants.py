"""`compare`'s models: what a word or some changed keys make of a run's spec."""

from __future__ import annotations

import re

import pytest
from absl import flags

from data.spec import SpecError, parse_spec
from modules.models.architectures import ARCHITECTURES
from tests.modules.transformed import two_phase_spec
from tfx_pipeline.comparison.variants import parse_variants, seeded

BASE = two_phase_spec()


def variants(text, epochs=None, is_pretrained=lambda _: True, base=BASE):
    return parse_variants(text, base, epochs or {}, is_pretrained)


def test_a_model_is_a_word_or_named_changes_of_the_spec():
    found = variants(
        "supermoe, bert,wide=model.hidden_dim:32,model.tower_dims:[8,4],heavy=tasks.click.weight:3"
    )
    assert [v.name for v in found] == ["supermoe", "bert", "wide", "heavy"]
    assert [v.spec.model.architecture for v in found] == [
        "supermoe",
        "bert",
        "supermoe",
        "supermoe",
    ]
    assert found[2].spec.model.hidden_dim == 32 and found[2].spec.model.tower_dims == (8, 4)
    assert {t.name: t.weight for t in found[3].spec.tasks}["click"] == 3.0
    assert found[0].spec == BASE


def test_a_list_of_names_keeps_those_tasks():
    (only,) = variants("only=tasks:[vip,click]")
    assert [task.name for task in only.spec.tasks] == ["click", "vip"]
    assert only.spec.tasks == tuple(t for t in BASE.tasks if t.name in ("click", "vip"))


def test_a_model_may_do_without_the_runs_knowledge():
    base = two_phase_spec(knowledge={"item": "item"})
    (without,) = variants("without=knowledge:null", base=base)
    assert without.spec.knowledge is None


def test_a_model_may_learn_from_its_own_domain_alone():
    base = two_phase_spec(domain={"channel": "item", "values": ["1"]})
    own, merged = variants("own=domain.train_on:domain,merged=model.ffn_dim:24", base=base)
    assert (own.spec.domain.train_on, merged.spec.domain.train_on) == ("domain", "both")


def test_all_get_the_same_budget_and_seeds_change_nothing_else():
    one, two = variants("a=model.num_experts:3,b=training.seed:9", {"pretrain": 2, "finetune": 5})
    for variant in (one, two):
        spec = seeded(variant, 7)
        assert spec.training.seed == 7
        assert (spec.training.pretrain.epochs, spec.training.finetune.epochs) == (2, 5)
    assert seeded(one, 7).model_dump(exclude={"model"}) == seeded(two, 7).model_dump(
        exclude={"model"}
    )


def test_what_has_no_pretraining_is_fine_tuned_alone():
    (variant,) = variants("bert", is_pretrained=lambda word: word != "bert")
    assert variant.spec.training.pretrain.epochs == 0
    with pytest.raises(flags.Error, match="bert has no pre-training"):
        variants(
            "x=model.architecture:bert,training.pretrain.epochs:2",
            is_pretrained=lambda word: word != "bert",
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "--models: nope: .*\n.*model.architecture: .*'supermoe'"),
        ("x=model.num_expert:8", "--models: x: .*\n.*model.num_expert: unknown key"),
        ("x=modle.num_experts:8", "modle: unknown key"),
        ("x=tasks.nope.weight:2", "tasks.nope.weight: no key of one of: click, stars"),
        ("x=tasks:[nope]", r"\['nope'\]: a list of names"),
        ("x=model.hidden_dim:31", "hidden_dim 31 is not a multiple"),
        ("x=model.hidden_dim", "isn't `key:value`"),
        ("model.hidden_dim:32", "follows no `name=`"),
        ("supermoe,supermoe", "'supermoe' is there twice"),
        ("X!=model.hidden_dim:32", "'X!' is no name"),
        ("", "give at least one"),
        ("x=sequence.window:30", "x changes 'sequence', which the run's instances were made with"),
        ("x=channels.item.rows:30", "x changes 'channels'"),
        ("x=tasks.click.label:buy", "x changes 'tasks'"),
        ("x=name:other", "x changes 'name'"),
        ("x=model.architecture:[bert]", "x: .*\n.*model.architecture: "),
        ("x=model.architecture:aetn,training.pretrain.objective:next_event", "takes no 'objective"),
        ("x=model.architecture:aetn,training.pretrain.s3.item:item", "s3.attributes: "),
        ("x=model:bert", "x: .*\n.*model: "),
        ("x=training:nope", "x: .*\n.*training: "),
        ("x=domain.channel:item,domain.values:['1']", "x changes 'domain'"),
    ],
)
def test_a_wrong_model_is_refused_before_anything_is_trained(text, said):
    with pytest.raises((flags.Error, SpecError), match=re.compile(said)):
        variants(text)


def test_a_run_of_its_own_kind_compares_with_any_model():
    """What only pre-trained or served models have isn't asked of others."""
    raw = BASE.model_dump(mode="json")
    raw["model"] |= {"added_tasks": True, "pooling": "max_mean"}
    raw["training"]["finetune"]["pretraining_weight"] = 0.5
    base = parse_spec(raw)
    found = variants("supermoe,mmoe", is_pretrained=lambda word: word != "mmoe", base=base)
    assert [v.spec.training.finetune.pretraining_weight for v in found] == [0.5, 0.0]
    assert not any(v.spec.model.added_tasks for v in found)
    assert [v.spec.model.pooling for v in found] == ["max_mean", None]


def test_an_own_objective_goes_with_any_other_change_of_pretraining():
    raw = BASE.model_dump(mode="json")
    raw["training"]["pretrain"]["objective"] = "denoising_autoencoder"
    found = variants(
        "a=model.architecture:aetn,training.pretrain:{epochs: 2},"
        "b=model.architecture:aetn,training.pretrain.s3:null,"
        "c=model:{architecture: aetn}",
        base=parse_spec(raw),
    )
    assert [v.spec.training.pretrain.objective for v in found] == ["masked_channels"] * 3
    assert found[0].spec.training.pretrain.epochs == 2


def test_every_architecture_can_be_asked_for():
    """Of a run whose objective and pooling not all of them take, too."""
    raw = two_phase_spec(domain={"channel": "item", "values": ["1"]}).model_dump(mode="json")
    raw["model"]["pooling"] = "mean"
    raw["training"]["pretrain"]["objective"] = "denoising_autoencoder"
    base = parse_spec(raw)
    for word in ARCHITECTURES:
        has = ARCHITECTURES[word].pretraining is not None
        (variant,) = variants(word, is_pretrained=lambda _, has=has: has, base=base)
        pretrain = variant.spec.training.pretrain
        assert bool(pretrain.epochs) == has
        own = word in ("aetn", "mtssl")
        assert pretrain.objective == ("masked_channels" if own else "denoising_autoencoder")
