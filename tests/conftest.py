"""Loads guards and fixtures where tests run, which takes seconds.

The process of pytest-xdist that only hands tests out has to be ready before the others begin.
"""

import seeds


def pytest_addoption(parser):
    parser.addoption(
        "--seed-offset", type=int, default=0, help="shift the seeds of data and fits by a number"
    )


def pytest_configure(config):
    seeds.set_offset(config.getoption("seed_offset"))
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("guards")
