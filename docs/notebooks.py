"""A hook of mkdocs: the notebooks of `examples` are pages, too, which its plug-in shows."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each notebook as a page of its name."""
    examples = Path(config.config_file_path).parent / "examples"
    for path in sorted(examples.glob("*.ipynb")):
        files.append(File(path.name, str(examples), config.site_dir, config.use_directory_urls))
    return files
