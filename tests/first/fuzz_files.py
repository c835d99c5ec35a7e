"""Change saved models at random and see what loading makes of them.

    python tests/fuzz_files.py --number 10000

Half of the changes are damage, which the checksum has to tell: bits, bytes, lengths, the table of
the tensors.  The other half comes from somebody who signs the file anew: the configuration, the
metadata or the numbers are changed, and the checksum is that of the new content.  Whatever the
change, loading either raises a ValueError that names the file, or gives an estimator: after damage
the one that was saved, to the last bit, and else one whose scores are numbers and do not change
from call to call.  Nothing is executed, no other file is written, nothing takes long or much
memory.  The command prints how often each of these happened, and fails if anything else did.
"""

import argparse
import collections
import contextlib
import copy
import json
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
import torch

import sk_itdiffusion
from sk_itdiffusion._first.persistence import files
from sk_itdiffusion._first.persistence.checks import declared_types
from sk_itdiffusion._first.persistence.registry import DECLARED
from sk_itdiffusion._first.pretrained import import_diffusers

SECONDS_FOR_A_FILE = 30
#: Memory beyond what the process has before, in bytes; the files have less than a million.
MEMORY_FOR_A_FILE = 2 * 2**30
QUICK = {
    "hidden_size": 4,
    "n_blocks": 1,
    "max_epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 16,
    "score_tol": 0.5,
    "random_state": 0,
}
#: What may not happen while a file is loaded; see `sys.addaudithook`.
FORBIDDEN = {
    "compile",
    "ctypes.dlopen",
    "exec",
    "os.exec",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
}
NASTY = [
    *[0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, -(2**63), 10**9, 10**12, 10**30, 0.5, -0.5, 1e308],
    *[None, True, False, "", "0", "nan", "os.system", "__class__", "a" * 5000, "\ud800", "meta"],
    *[[], [[]], [0] * 100, {}, {"$": "eval"}, {"$": "float", "parts": ["nan"]}],
    {"$": "float", "parts": ["inf"]},
    {"$": "object", "number": 0},
    {"$": "range", "parts": [0, 10**15, 1]},
    {"$": "items", "parts": ["<U99999999", [1], ["x"]]},
    {"$": "items", "parts": ["|O", [10**12], []]},
    {"$": "items", "parts": ["<f8", [1], [1.0]]},
    {"$": "named_dtype", "parts": ["datetime64[ns, ../../etc/passwd]"]},
    {"$": "named_dtype", "parts": ["period[99999999D]"]},
    {"$": "device", "parts": ["cuda:99"]},
    {"$": "given", "member": ""},
    {"$": "bytes", "parts": ["00" * 1000]},
    {"$": "decimal", "parts": ["1E+999999999"]},
    {"$": "range_index", "parts": [{"$": "range", "parts": [0, 10**15, 1]}, None]},
]


# -- models ----------------------------------------------------------------------------------


def small_models():
    """Return the name, a small fitted model and rows of it, for each kind of estimator."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(40, 2)), 5.0 + 0.3 * rng.normal(size=(40, 2))])
    frame = pd.DataFrame({"a": X[:, 0], "b": np.where(X[:, 1] > 2.5, "high", "low")})
    frame["c"] = rng.poisson(2.0, size=80)
    digits = rng.integers(0, 3, size=(80, 3))
    density = sk_itdiffusion.IMMSEDensity(**QUICK, marginals="quantile")
    members = [
        ("first", sk_itdiffusion.IMMSEDensity(**QUICK)),
        ("other", sk_itdiffusion.IMMSEDensity(**QUICK | {"hidden_size": 3})),
    ]
    estimators = [
        ("density", density, X),
        ("lattice", sk_itdiffusion.IMMSEDensity(**QUICK, dequantize=True), np.rint(3 * X)),
        ("discrete", sk_itdiffusion.IMMSEDiscreteDensity(**QUICK), digits),
        ("path", sk_itdiffusion.IMMSEDiscreteDensity(**QUICK, likelihood="path"), digits),
        ("mixed", sk_itdiffusion.IMMSEMixedDensity(**QUICK), frame),
        ("ensemble", sk_itdiffusion.IMMSEEnsemble(members, random_state=0), X),
        ("detector", sk_itdiffusion.IMMSEOutlierDetector(contamination=0.1, random_state=0), frame),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [(name, each.fit(rows), scored_rows(rows)) for name, each, rows in estimators]


def scored_rows(rows):
    """Return a few of the rows, and of those of numbers in reals some far from the others too."""
    if isinstance(rows, pd.DataFrame):
        far = rows[:2].assign(a=[-1e3, 1e3])
        return pd.concat([rows[:3], far], ignore_index=True)
    if rows.dtype.kind == "i":
        return rows[:5]
    return np.vstack([rows[:3], np.rint([[-1e3, 10.0], [20.0, 1e3]])])


# -- damage ----------------------------------------------------------------------------------


def header_end(content):
    return 8 + int.from_bytes(content[:8], "little")


def flip_bits(content, rng, end):
    for place in rng.integers(0, end, rng.integers(1, 4)):
        content[place] ^= 1 << rng.integers(8)


def truncate(content, rng, end):
    del content[rng.integers(0, end) :]


def insert(content, rng, end):
    place = rng.integers(0, end)
    content[place:place] = rng.bytes(rng.integers(1, 9))


def delete(content, rng, end):
    place = rng.integers(0, end)
    del content[place : place + rng.integers(1, 9)]


def swap(content, rng, end):
    size = int(rng.integers(1, 65))
    first, second = sorted(rng.integers(0, max(1, end - size), 2))
    part = content[first : first + size]
    content[first : first + size] = content[second : second + size]
    content[second : second + size] = part


def repeat(content, rng, end):
    place, size = rng.integers(0, end), rng.integers(1, 200)
    content[place:place] = content[place : place + size]


DAMAGES = [flip_bits, truncate, insert, delete, swap, repeat]


def damaged(content, rng):
    """Return a file with a few bytes changed, in the header half of the time."""
    changed = bytearray(content)
    end = header_end(content) if rng.random() < 0.5 else len(content)
    DAMAGES[rng.integers(len(DAMAGES))](changed, rng, end)
    return bytes(changed)


def with_table(content, rng):
    """Return a file whose table of tensors tells other places, shapes or types."""
    end = header_end(content)
    header = json.loads(content[8:end])
    change_table(header, rng)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[end:]


def change_table(header, rng):
    """Change an entry of the table of tensors in place."""
    names = [name for name in header if name != "__metadata__"]
    first, second = header[chosen(names, rng)], header[chosen(names, rng)]
    kind = rng.integers(7)
    if kind == 0:  # overlapping or equal places
        first["data_offsets"] = list(second["data_offsets"])
    elif kind == 1:
        first["shape"] = [int(10 ** rng.integers(1, 15))] * int(rng.integers(1, 9))
    elif kind == 2:
        first["shape"] = first["shape"][::-1] + [1] * int(rng.integers(0, 3))
    elif kind == 3:
        first["dtype"] = chosen(["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "I32"], rng)
    elif kind == 4:
        first["data_offsets"] = [int(n) for n in rng.integers(-5, 2**40, 2)]
    elif kind == 5:
        header["other"] = copy.deepcopy(first)
    else:
        del header[chosen(names, rng)]


# -- new content with the right checksum -------------------------------------------------------


def chosen(items, rng):
    return items[int(rng.integers(len(items)))]


def places(node, found=None):
    """Return the containers and keys of all nodes of parsed JSON."""
    found = [] if found is None else found
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(entries):
        found.append((node, key))
        if isinstance(value, dict | list):
            places(value, found)
    return found


def change_config(config, rng):
    """Change one place of a parsed configuration."""
    everywhere = places(config)
    container, key = chosen(everywhere, rng)
    kind = rng.integers(6)
    if kind == 0:
        container[key] = copy.deepcopy(chosen(NASTY, rng))
    elif kind == 1:  # a part of the same file in another place
        other, name = chosen(everywhere, rng)
        container[key] = copy.deepcopy(other[name])
    elif kind == 2:
        other, name = chosen(everywhere, rng)
        container[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(container[key])
    elif kind == 3:
        del container[key]
    elif isinstance(container[key], int | float) and not isinstance(container[key], bool):
        factor = chosen([0, -1, 2, 10, 1000, 10**9], rng)
        container[key] = container[key] * factor + int(rng.integers(-1, 2))
    elif isinstance(container, list):
        container.insert(int(rng.integers(len(container) + 1)), copy.deepcopy(container[key]))
    else:
        container[key] = {"$": "tuple", "items": [container[key]]}


def change_numbers(arrays, rng):
    """Change one of the arrays in place."""
    name, other = chosen(sorted(arrays), rng), chosen(sorted(arrays), rng)
    array = arrays[name].copy()
    kind = rng.integers(6)
    with np.errstate(over="ignore"):
        arrays[name] = changed_array(array, arrays[other], kind, rng)


def changed_array(array, other, kind, rng):
    """Return an array with other numbers, another shape or another type."""
    if kind == 0 and array.size:
        array.reshape(-1)[rng.integers(array.size)] = chosen([0, 1, 100], rng)
    elif kind == 1 and array.size and array.dtype.kind == "f":
        array.reshape(-1)[rng.integers(array.size)] = chosen([np.nan, np.inf, -1e300, -1.0], rng)
    elif kind == 2:
        array = other.copy()
    elif kind == 3:
        array = array.T.copy() if array.ndim > 1 else array[:-1]
    elif kind == 4:
        array = array.astype(chosen(["f8", "f4", "i8", "u1"], rng), casting="unsafe")
    else:
        array = np.concatenate([array.reshape(-1), array.reshape(-1)])
    return array


def signed(arrays, metadata):
    """Return a file with the checksum that is right for its content."""
    metadata["sha256"] = files.checksum(arrays, metadata)
    return safetensors.numpy.save(arrays, metadata)


def resigned(content, rng):
    """Return a file whose content is changed, with the right checksum."""
    metadata = json.loads(content[8 : header_end(content)])["__metadata__"]
    arrays = dict(safetensors.numpy.load(content))
    kind = rng.integers(8)
    if kind == 0:
        key = chosen(sorted(metadata), rng)
        metadata[key] = chosen(["", "0", "2", "-1", "x", "9" * 400, "{}"], rng)
    elif kind == 1:
        with contextlib.suppress(OverflowError):
            change_numbers(arrays, rng)
    else:
        config = json.loads(metadata["config"])
        for _ in range(int(rng.integers(1, 3))):
            change_config(config, rng)
        metadata["config"] = json.dumps(config)
    return signed(arrays, metadata)


# -- what loading makes of it ------------------------------------------------------------------


class Watch:
    """Notes forbidden events while it is on; audit hooks cannot be removed."""

    def __init__(self):
        self.is_on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.is_on:
            return
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if event in FORBIDDEN or writes:
            self.seen.append((event, repr(arguments)[:200]))

    @contextlib.contextmanager
    def on(self):
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


class Alarm:
    """Raises an error in a call that takes too long."""

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, self.ring)
        signal.alarm(SECONDS_FOR_A_FILE)

    def __exit__(self, *_):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)

    @staticmethod
    def ring(*_):
        raise KeyboardInterrupt(f"more than {SECONDS_FOR_A_FILE} s")


def scores_of(estimator, rows, effort):
    """Return scores, with the effort of the saved model: users choose how exactly they score."""
    density = getattr(estimator, "estimator_", estimator)
    density.set_params(**effort)
    scores = np.asarray(estimator.score_samples(rows))
    if density is estimator:  # no detector
        return scores
    return np.concatenate([scores, estimator.decision_function(rows)])


def outcome(path, rows, expected, effort, is_damage):
    """Return what loading a changed file came to, or raise an error if it may not come to that."""
    try:
        loaded = sk_itdiffusion.load(path)
    except ValueError as error:
        told = f"{error} {error.__cause__!r}"
        if path.name not in told:
            raise AssertionError("the error does not name the file") from error
        if isinstance(error.__cause__, MemoryError) or "allocate memory" in told:
            raise AssertionError("too much memory") from error
        return "refused by the checksum" if "SHA-256" in told else "refused by the checks"
    except ImportError:
        return "refused: a package is missing"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = scores_of(loaded, rows, effort)
            again = scores_of(loaded, rows, effort)
    except ValueError as error:
        if is_damage:
            raise AssertionError("damage loads, but does not score") from error
        return "loads, but refuses these rows"
    if np.array_equal(scores, expected):
        return "the same model"
    if is_damage:
        raise AssertionError("damage changes scores")
    if scores.shape != expected.shape or np.isnan(scores).any():
        raise AssertionError("scores are no numbers")
    if not np.array_equal(scores, again):
        raise AssertionError("scores change from call to call")
    return "another model"


def fuzz(models, n, seed, folder, watch=None):
    """Return how often each outcome came about, and a list of failures.

    Parameters
    ----------
    models : list of (str, estimator, rows)
        Fitted models.
    n, seed : int
        Number of changes, and the seed.
    folder : Path
        Where to write the files.
    watch : Watch or None, default=None
        Notes what may not happen.

    Returns
    -------
    counts : Counter
        By kind of change and outcome.
    failures : list of str
        What went wrong.
    """
    rng = np.random.default_rng(seed)
    path = Path(folder) / "changed.safetensors"
    watch = Watch() if watch is None else watch
    saved = []
    for name, estimator, rows in models:
        density = getattr(estimator, "estimator_", estimator)
        params = density.get_params()
        effort = {key: params[key] for key in ("score_tol", "n_paths") if key in params}
        content = files.encoded_file(estimator)
        saved.append((name, content, rows, scores_of(estimator, rows, effort), effort))
    changes = [("bytes", damaged), ("tensor table", with_table), ("signed", resigned)]
    counts, failures = collections.Counter(), []
    for number in range(n):
        name, content, rows, expected, effort = saved[number % len(saved)]
        kind, change = changes[[0, 2, 1, 2, 0, 2][number // len(saved) % 6]]
        path.write_bytes(change(content, rng))
        begin, n_failures = time.perf_counter(), len(failures)
        try:
            with Alarm(), watch.on():
                result = outcome(path, rows, expected, effort, kind != "signed")
        except KeyboardInterrupt as error:
            if not error.args:
                raise
            result = f"FAILURE {error}"
            failures.append(f"{name}, {kind}, number {number}: {error}")
        except BaseException as error:
            result = f"FAILURE {type(error).__name__}"
            failures.append(f"{name}, {kind}, number {number}: {type(error).__name__}: {error}")
        if watch.seen:
            failures.append(f"{name}, {kind}, number {number}: {watch.seen}")
            watch.seen = []
        if len(failures) > n_failures:
            (path.parent / f"failure-{seed}-{number}.safetensors").write_bytes(path.read_bytes())
        counts[kind, result] += 1
        counts["slowest, ms"] = max(
            counts["slowest, ms"], round(1e3 * (time.perf_counter() - begin))
        )
    return counts, failures


def warm_up(models, folder):
    """Load what loading needs, so that it is not taken for what a file has caused."""
    with contextlib.suppress(ImportError):
        import_diffusers()
    repr(torch.ones(1))  # torch loads a module at the first
    for declaration in DECLARED.values():
        declared_types(declaration.maker)
    for _, estimator, rows in models:
        estimator.save(folder / "whole.safetensors")
        sk_itdiffusion.load(folder / "whole.safetensors").score_samples(rows)
    fuzz(models, 6 * len(models), 1, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=10_000, help="changed files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for files that fail")
    arguments = parser.parse_args()
    models = small_models()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or temporary
        Path(folder).mkdir(parents=True, exist_ok=True)
        warm_up(models, Path(folder))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = virtual + MEMORY_FOR_A_FILE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        counts, failures = fuzz(models, arguments.number, arguments.seed, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key, count in sorted(counts.items(), key=str):
        print(f"{count:>8}  {key if isinstance(key, str) else ': '.join(key)}")
    print(f"{(peak - used) / 1024:8.0f}  MiB of memory more than at the start")
    print(*failures, sep="\n")
    return 1 if failures or any("FAILURE" in str(key) for key in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
