"""Arguments with which the documentation build runs the examples."""

from pathlib import Path


def into_build(gallery_conf: dict, script_vars: dict) -> list[str]:
    """Return arguments by which an example writes its files to the build, not to the sources."""
    build = Path(gallery_conf["src_dir"]) / "_build" / "examples"
    return ["--output", str(build / Path(script_vars["src_file"]).stem)]
