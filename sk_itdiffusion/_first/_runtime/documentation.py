"""Links from the HTML representation of estimators to the documentation site.

The address of the site stands in one place, ``Documentation`` under ``[project.urls]`` of
``pyproject.toml``, and is read from the metadata of the installed package.  Where none is declared
there are no links.
"""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import ClassVar

__all__ = ["DocumentationLinkMixin", "documentation_url"]

PACKAGE = "sk_itdiffusion"
URL_LABEL = "documentation"


@lru_cache(maxsize=1)
def documentation_url() -> str:
    """Return the address of the site without a slash at its end, or "" if there is none."""
    try:
        declared = importlib.metadata.metadata(PACKAGE).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for entry in declared:
        label, _, url = entry.partition(",")
        if label.strip().lower() == URL_LABEL:
            return str(url.strip().rstrip("/"))
    return ""


class DocumentationLinkMixin:
    """Lets scikit-learn's representation of an estimator link to its page of the reference."""

    _doc_link_module: ClassVar[str] = PACKAGE

    @property
    def _doc_link_template(self) -> str:
        url = documentation_url()
        return f"{url}/api/generated/{{page}}.html" if url else ""

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        """Return what the template needs: a page has the name under which a class is public.

        Classes of private packages are public at the top.
        """
        module = type(self).__module__.replace("._first", "").partition("._")[0]
        return {"page": f"{module}.{type(self).__name__}"}
