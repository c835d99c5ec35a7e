"""References and other objects of the user's own, from the fit to the file."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import safetensors
import torch
from scipy import stats
from sklearn.base import BaseEstimator, clone

import sk_itdiffusion
from first.marks import others_slow
from first.outside import StudentTReference
from sk_itdiffusion import IMMSEDensity, IMMSEOutlierDetector
from sk_itdiffusion._first._fit.ensemble_model import equal_references
from sk_itdiffusion._first.persistence.encoded import Decoder, Encoder
from sk_itdiffusion._first.references import Reference
from sk_itdiffusion._first.schedules import LogisticSchedule

pytestmark = pytest.mark.usefixtures("brief_fits")

SHAPE = np.array([[2.0, 0.8], [0.8, 1.0]])
MEAN = np.array([5.0, -3.0])


def heavy_tailed(n=300, seed=0):
    t = stats.multivariate_t(MEAN, SHAPE, df=4.0, seed=seed)
    return t.rvs(n)


def student(**parameters):
    reference = StudentTReference(MEAN, SHAPE, 4.0)
    return IMMSEDensity(reference=reference, max_epochs=0, random_state=0, **parameters)


@pytest.fixture(scope="module")
def density():
    return student(experts=["reference"]).fit(heavy_tailed())


@pytest.fixture(scope="module")
def detector():
    settings = {"trim": 0.0, "contamination": 0.1, "random_state": 0}
    return IMMSEOutlierDetector(student(), **settings).fit(heavy_tailed())


def test_density_is_that_of_the_reference(density):
    """In the units of X; the nodes' tail is lighter than that of the t distribution."""
    X = heavy_tailed(50, seed=1)
    found = density.score_samples(X)
    np.testing.assert_allclose(found, density.reference.log_prob(torch.from_numpy(X)), rtol=1e-9)
    near = found > -7.0
    expected = stats.multivariate_t(MEAN, SHAPE, df=4.0).logpdf(X)
    assert np.abs(found - expected)[near].max() < 0.1


def test_clones_and_pickles_are_the_same(density):
    X = heavy_tailed(20, seed=1)
    expected = density.score_samples(X)
    assert np.array_equal(clone(density).fit(heavy_tailed()).score_samples(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(density)).score_samples(X), expected)


def test_references_of_equal_tensors_are_told_apart_by_their_numbers():
    """Experts that are the same distribution are there once."""
    first, second = (StudentTReference([0.0], [[1.0]], 4.0, n_nodes=8) for _ in range(2))
    assert equal_references(first, second)
    second.degrees = 5.0
    assert not equal_references(first, second)
    second.degrees = [4.0, {}]
    assert not equal_references(second, copy.deepcopy(second))
    assert equal_references(second, second)


def test_explanations_of_a_detector_sum_to_its_scores(detector):
    X = np.vstack([heavy_tailed(10, seed=1), [[40.0, 40.0]]])
    assert "reference" in detector.members_
    scores = detector.score_samples(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), scores, rtol=1e-9)
    assert scores[-1] == scores.min()


def checksum_of(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()["sha256"]


@pytest.mark.parametrize("name", others_slow(["density", "detector"]))
def test_file_is_loaded_with_the_class(name, request, tmp_path):
    estimator, X = request.getfixturevalue(name), heavy_tailed(10, seed=1)
    path = tmp_path / "model"
    estimator.save(path)
    loaded = sk_itdiffusion.load(path, classes=[StudentTReference])
    assert np.array_equal(loaded.score_samples(X), estimator.score_samples(X))
    if name == "detector":
        assert loaded.explain(X).equals(estimator.explain(X))
    loaded.save(tmp_path / "again")
    assert checksum_of(tmp_path / "again") == checksum_of(path)
    # Dask names results by the content, for which the order of a file's header does not matter.
    assert loaded.__dask_tokenize__() == estimator.__dask_tokenize__() == checksum_of(path)
    with pytest.raises(ValueError, match=r"missing ones: .*classes=\[StudentTReference\]"):
        sk_itdiffusion.load(path)


def test_names_in_files_are_only_looked_up_among_the_classes_passed(density, tmp_path):
    """A class of the same name is the user's word; one of the library has names of its own."""
    path = tmp_path / "model"
    density.save(path)
    other = type("StudentTReference", (LogisticSchedule,), {})
    with pytest.raises(ValueError, match="Cannot load"):
        sk_itdiffusion.load(path, classes=[other])
    with pytest.raises(TypeError, match=r"have get_params, got <class 'numpy\.ndarray'>"):
        sk_itdiffusion.load(path, classes=[np.ndarray])
    with pytest.raises(ValueError, match="different names"):
        sk_itdiffusion.load(path, classes=[StudentTReference, other])


def test_reference_that_is_not_continuous_is_refused():
    class Other(Reference):
        log_prob = denoise = sample = smoothed_log_prob = None

    with pytest.raises(ValueError, match=r"instance of .*ContinuousReference'. Got Other"):
        IMMSEDensity(reference=Other(), max_epochs=0).fit(heavy_tailed())


# -- other objects -----------------------------------------------------------------------------


class OwnSchedule(LogisticSchedule):
    """A schedule of the user's own."""


class OwnParameters(BaseEstimator):
    """An object that is its parameters."""

    def __init__(self, width=1.0, names=("a", "b")):
        self.width = width
        self.names = names


@dataclasses.dataclass(frozen=True)
class OwnFields:
    """An object that is its fields, some of which follow from others."""

    factor: float
    part: OwnParameters
    double: float = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "double", 2.0 * self.factor)


class OwnConfig:
    """An object that is no module, but tells what it is made from."""

    def __init__(self, n):
        self.table = list(range(n))

    def config(self):
        return {"n": len(self.table)}

    @classmethod
    def from_config(cls, n):
        return cls(n)


def test_schedule_of_ones_own_is_loaded_with_the_class(tmp_path):
    settings = {"max_epochs": 0, "random_state": 0}
    density = IMMSEDensity(schedule=OwnSchedule(loc=1.5), **settings).fit(heavy_tailed())
    density.save(tmp_path / "model")
    loaded = sk_itdiffusion.load(tmp_path / "model", classes=[OwnSchedule])
    assert type(loaded.schedule) is OwnSchedule
    assert loaded.schedule.get_params() == density.schedule.get_params()


def round_trip(value, classes):
    encoder = Encoder()
    node = encoder.encode(value)
    return Decoder(encoder.arrays, encoder.objects, {}, None, classes).decode(node)


def test_objects_are_their_parameters_fields_or_config():
    part = OwnParameters(3.0, names=("c",))
    fields, again, config = round_trip(
        [OwnFields(0.5, part), part, OwnConfig(4)], [OwnFields, OwnParameters, OwnConfig]
    )
    assert (fields.factor, fields.double) == (0.5, 1.0)
    assert again is fields.part
    assert again.get_params() == part.get_params()
    assert config.table == [0, 1, 2, 3]


def test_what_would_be_lost_is_refused():
    fitted = OwnParameters()
    fitted.width_ = 2.0
    with pytest.raises(TypeError, match="OwnParameters that has width_ besides its parameters"):
        Encoder().encode(fitted)
    same = type("OwnParameters", (BaseEstimator,), {})
    with pytest.raises(TypeError, match="another class OwnParameters than a second object"):
        Encoder().encode([OwnParameters(), same()])
