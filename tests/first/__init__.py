"""Tests of the old rooms, `sk_itdiffusion/_first`; see conftest.py for those that run."""
