"""The estimators under scikit-learn's global settings."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from first.marks import others_slow
from sk_itdiffusion import (
    IMMSEDensity,
    IMMSEDiscreteDensity,
    IMMSEEnsemble,
    IMMSEMixedDensity,
    IMMSEOutlierDetector,
)

pytestmark = pytest.mark.usefixtures("brief_fits")

QUICK = {"max_epochs": 0, "score_tol": 0.5, "random_state": 0}
rng = np.random.default_rng(0)
NUMBERS = pd.DataFrame(rng.normal(size=(80, 2)), columns=["first", "second"])
LEVELS = pd.DataFrame(rng.integers(0, 3, size=(80, 2)), columns=["first", "second"])
SUBJECTS = {
    "density": (IMMSEDensity(**QUICK), NUMBERS),
    "discrete": (IMMSEDiscreteDensity(**QUICK), LEVELS),
    "mixed": (IMMSEMixedDensity(**QUICK), NUMBERS.assign(level=LEVELS["first"])),
    "ensemble": (IMMSEEnsemble([("one", IMMSEDensity(**QUICK))], random_state=0), NUMBERS),
}
DETECTOR = IMMSEOutlierDetector(contamination=0.1, random_state=0)
WEIGHT = rng.integers(1, 4, size=80).astype(float)


@pytest.mark.filterwarnings("ignore:Column")  # heavy rows are ties
@pytest.mark.parametrize("name", others_slow(SUBJECTS))
def test_weights_are_routed_where_they_are_asked_for(name):
    estimator, X = SUBJECTS[name]
    direct = clone(estimator).fit(X, sample_weight=WEIGHT).score_samples(X)
    with sklearn.config_context(enable_metadata_routing=True):
        asking = clone(estimator).set_fit_request(sample_weight=True)
        pipeline = make_pipeline(asking).fit(X, sample_weight=WEIGHT)
        np.testing.assert_array_equal(pipeline.score_samples(X), direct)
        search = GridSearchCV(asking, {"random_state": [0]}, cv=2)
        search.fit(X, sample_weight=WEIGHT)
        np.testing.assert_array_equal(search.best_estimator_.score_samples(X), direct)
        # Nobody is given weights that nobody has said what to do with.
        with pytest.raises(ValueError, match="sample_weight"):
            GridSearchCV(clone(estimator), {"random_state": [0]}, cv=2).fit(X, sample_weight=WEIGHT)
        ignoring = clone(estimator).set_fit_request(sample_weight=False)
        plain = make_pipeline(ignoring).fit(X).score_samples(X)
        assert np.abs(plain - direct).max() > 0.0
        assert np.isfinite(cross_validate(ignoring, X, cv=2)["test_score"]).all()


@pytest.mark.parametrize("name", others_slow(["density", "detector", *list(SUBJECTS)[1:]], 2))
def test_frames_come_out_of_transformers(name):
    estimator, X = SUBJECTS.get(name, (DETECTOR, NUMBERS))
    expected = clone(estimator).fit(X).score_samples(X)
    with sklearn.config_context(transform_output="pandas"):
        fitted = clone(estimator).fit(X)
        np.testing.assert_array_equal(fitted.score_samples(X), expected)
        if name in ("density", "detector"):
            pipeline = make_pipeline(StandardScaler(), clone(estimator)).fit(X)
            assert list(pipeline[-1].feature_names_in_) == list(X.columns)
            assert np.isfinite(pipeline.score_samples(X)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", [False, True])
def test_arrays_of_torch_are_read_with_and_without_array_dispatch(dispatch):
    """scipy reads its own setting at import, so this needs a new interpreter."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import numpy as np, sklearn, torch\n"
        "from sklearn.base import clone\n"
        "from test_compatibility import DETECTOR, NUMBERS, SUBJECTS, WEIGHT\n"
        "for estimator, X in [*SUBJECTS.values(), (DETECTOR, NUMBERS)]:\n"
        "    rows = X.to_numpy().copy()\n"
        "    weight = {} if estimator is DETECTOR else {'sample_weight': WEIGHT}\n"
        "    expected = clone(estimator).fit(rows, **weight).score_samples(rows)\n"
        f"    with sklearn.config_context(array_api_dispatch={dispatch}):\n"
        "        for convert in (np.asarray, torch.asarray):\n"
        "            given = {name: convert(value) for name, value in weight.items()}\n"
        "            fitted = clone(estimator).fit(convert(rows), **given)\n"
        "            found = fitted.score_samples(convert(rows))\n"
        "            assert isinstance(found, np.ndarray), type(found)\n"
        "            np.testing.assert_array_equal(found, expected)\n"
        "print('done')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
