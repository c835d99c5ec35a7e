"""What is to go warns its caller, with versions and the replacement, and works until then."""

import inspect
import warnings

import pytest
from sklearn.base import BaseEstimator, _fit_context, clone

from sk_itdiffusion._runtime.deprecation import deprecated, renamed_parameters, replaced_parameter

VERSIONS = {"since": "0.2", "removed_in": "0.4"}
TOLD = r"is deprecated since sk_itdiffusion 0\.2 and will be removed in 0\.4; use"


@deprecated(**VERSIONS, instead="new()")
def old(x, *, factor=2):
    """Return a product."""
    return factor * x


@renamed_parameters(**VERSIONS, n="n_samples", seed="random_state")
def draw(n_samples, *, random_state=None):
    return n_samples, random_state


class Renamed(BaseEstimator):
    def __init__(self, n_steps=10, steps="deprecated"):
        self.n_steps = n_steps
        self.steps = steps

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X):
        self.n_steps_ = replaced_parameter(self, "steps", "n_steps", **VERSIONS)
        return self

    _parameter_constraints = {}  # noqa: RUF012


def test_deprecated_function_warns_and_works():
    with pytest.warns(FutureWarning, match=rf"^old\(\) {TOLD} new\(\) instead\.$") as caught:
        assert old(3, factor=5) == 15
    assert caught[0].filename == __file__
    assert old.__doc__ == "Return a product."
    assert list(inspect.signature(old).parameters) == ["x", "factor"]


def test_old_keywords_warn_and_work():
    with pytest.warns(
        FutureWarning, match=rf"The parameter 'n' of draw\(\) {TOLD} 'n_samples'"
    ) as w:
        assert draw(n=3, random_state=1) == (3, 1)
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(3, random_state=1) == draw(n_samples=3, random_state=1) == (3, 1)
    with pytest.raises(TypeError, match="got 'n_samples' and its old name 'n'"):
        draw(n=3, n_samples=4)


def test_old_parameter_of_an_estimator_warns_in_fit_and_works():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Renamed(n_steps=5).fit(None).n_steps_ == 5
        estimator = clone(Renamed(steps=7))
    with pytest.warns(FutureWarning, match=rf"'steps' of Renamed {TOLD} 'n_steps'") as caught:
        assert estimator.fit(None).n_steps_ == 7
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="n_steps and its old name steps are both given"):
        Renamed(n_steps=5, steps=7).fit(None)
