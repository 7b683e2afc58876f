"""What every quick experiment must give: the tests of the papers go on from here."""

import warnings
from dataclasses import replace

import torch

from mtlearn.lab.experiment import Arms, Experiment
from mtlearn.lab.result import check_arms, judge
from mtlearn.lab.seeds import seeded


def run_quick(experiment: Experiment) -> Arms:
    """The arms of one seed at quick scale; every claim can be judged on them, every metric has a unit, and nothing warns."""
    quick = replace(experiment.scales["quick"], seeds=1)
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("error")
        arms = check_arms(experiment.run(quick, 0, torch.device("cpu")))
    for claim in experiment.claims:
        assert claim.says
        assert judge(claim, [arms, arms]).better == claim.better
    assert {metric for metrics in arms.values() for metric in metrics} <= set(experiment.units)
    return arms
