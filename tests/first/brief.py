"""Fits that are complete but search and calibrate little, for laws that hold for any fit.

Most of the time of a small fit goes into choices that make it accurate: of numbers of components
and classes, of maps, of weights at each node, of the draws that a score needs.
"""

import importlib
from contextlib import contextmanager

import pytest

#: The least with which nothing is left out.
BRIEF = {
    "_conditional.base_model._N_TREES": 12,
    "_fit.stacking.RULE_ROWS": 20,
    "_fit.stacking.MIN_PROFILE_ROWS": 200,
    "_fit.ensemble_model.MIN_PROFILE_ROWS": 200,
    "_fit.ensemble_model.N_NODES": 15,
    "_fit.selection.N_NODES": 15,
    "_fit.map_choice._COMPONENTS_FOR_MAPS": (2,),
    "_immse.errors.CALIBRATED": (8, 16, 32),
    "references.families.mixture._COMPONENTS": (2,),
    "references.families.kernel_density._KERNELS_FOR_MAPS": 50,
    "references.families.crossed._CLASSES": (2,),
    "references.families.latent_class._CLASSES": (2,),
    "references.kernel_fit._FINENESS_OF_STARTS": (0.3, 0.01),
    "references.kernel_fit._MAX_STEPS": 3,
}


def _read(name):
    module, constant = f"sk_itdiffusion._first.{name}".rsplit(".", 1)
    return getattr(importlib.import_module(module), constant)


USUAL = {name: _read(name) for name in BRIEF}


@contextmanager
def _constants(values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(f"sk_itdiffusion._first.{name}", value)
        yield


def choices():
    """Return a context in which fits search and calibrate little."""
    return _constants(BRIEF)


def usual_choices():
    """Return a context in which fits are as users have them."""
    return _constants(USUAL)
