"""Loads guards and fixtures where tests run, which takes seconds.

The process of pytest-xdist that only hands tests out has to be ready before the others begin.
"""


def pytest_configure(config):
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("guards")
