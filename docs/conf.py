"""Configuration of the documentation site, which ``sphinx-build`` makes from this folder.

Neither the build nor the pages need a network.  With ``DOCS_INTERSPHINX=1`` in the environment,
names of Python, NumPy, pandas, scikit-learn and torch link to their documentation, whose
inventories are then read from the network.  With ``DOCS_WITHOUT_GALLERY=1`` no example is run, and
pages lack the pictures of the gallery.
"""

import os
import sys
from pathlib import Path

import sk_itdiffusion

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_arguments and mathml

project = "sk_itdiffusion"
author = "The sk_itdiffusion developers"
copyright = author
release = version = sk_itdiffusion.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "mathml",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "auto_examples/**.ipynb", "auto_examples/**.py"]
templates_path = ["_templates"]
default_role = "autolink"

# -- links ---------------------------------------------------------------------------------

# Every name in a page has to lead somewhere; those of other packages do only with inventories.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(diffusers|joblib|matplotlib|numpy|pandas|scipy|sklearn|skorch|torch)\..*"),
]
if os.environ.get("DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# -- pages in Markdown ---------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["math"]

# -- reference from docstrings -------------------------------------------------------------

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say types in words, with shapes
# What classes have from other packages is documented there.
autosummary_context = {
    "foreign_bases": "ABC, BaseEstimator, Dataset, DensityMixin, Module, OneToOneFeatureMixin, "
    "OutlierMixin, RegressorMixin, TransformerMixin, _BaseComposition, _MetadataRequester, "
    "_SetOutputMixin",
    "foreign_members": "set_fit_request, set_output, set_predict_request, set_score_request",
}
numpydoc_show_class_members = False

# -- gallery -------------------------------------------------------------------------------

has_gallery = not os.environ.get("DOCS_WITHOUT_GALLERY")
if not has_gallery:
    suppress_warnings = ["image.not_readable"]


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",  # the others take long; they are shown with committed figures
    "within_subsection_order": "FileNameSortKey",
    "reset_argv": "gallery_arguments.into_build",
    "backreferences_dir": "api/backreferences",
    "doc_module": ("sk_itdiffusion",),
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "plot_gallery": has_gallery,
    "abort_on_example_error": True,
    "min_reported_time": 0,
}

# -- HTML ----------------------------------------------------------------------------------

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "sk_itdiffusion"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
PAGES_WITHOUT_SECTION = [
    "benchmarks",
    "changelog",
    "comparison",
    "contributing",
    "getting_started",
    "own_denoiser",
    "paper_experiments",
    "reliability",
    "scaling",
    "theory",
]
html_sidebars = {page: [] for page in PAGES_WITHOUT_SECTION}
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "footer_start": ["sphinx-version"],
    "footer_end": ["theme-version"],
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
