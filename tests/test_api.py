"""The public interface changes on purpose only."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from api_snapshot import MODULES, snapshot

import sk_itdiffusion

MODULE_NAMES = sorted(
    module.name for module in pkgutil.walk_packages(sk_itdiffusion.__path__, "sk_itdiffusion.")
)


def test_public_interface_is_the_one_recorded():
    recorded = Path(__file__).with_name("api.txt").read_text(encoding="utf-8")
    assert snapshot() == recorded, (
        "The public interface has changed. If that is meant, run\n"
        "    python tests/api_snapshot.py > tests/api.txt\n"
        "and tell of it in CHANGELOG.md; names that go are told of there."
    )


@pytest.mark.parametrize("name", MODULE_NAMES)
def test_modules_say_what_they_export(name):
    module = importlib.import_module(name)
    if name.endswith("._version"):
        return
    assert module.__all__ == sorted(
        module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)
    )
    assert not [exported for exported in module.__all__ if not hasattr(module, exported)]


def test_public_modules_exist():
    assert {name for name in MODULES if name != "sk_itdiffusion"} <= set(MODULE_NAMES)
