"""What mkdocs does beyond its pages: generated pages, files of the repository, and equations without scripts.

- Pages under ``build/docs`` (see `generate.py`) are pages of the site; ``methods/*`` in the navigation stands for all.
- README, CONTRIBUTING, CHANGELOG and SECURITY are pages too. A link of any page to another file of the repository leads
  to a page that shows the file, so that no link depends on where the repository is.
- Equations become MathML when the site is built: the browser needs no script and no network for them.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "build" / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_ADDRESSES = {page: name for name, page in PAGES.items()}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=[)\s])")
_CODE = re.compile(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_PAPER = re.compile(r"(?<![\[/\w])arXiv:(\d{4}\.\d{4,5})(?![\]\d])")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml", ".md": "markdown"}
_LONGEST = 60_000  # characters of a file that is shown; a longer one is a download


def on_config(config: Any) -> Any:
    """Put the generated pages of the methods into the navigation."""
    if not GENERATED.is_dir():
        raise PluginError("there are no generated pages; `make docs` writes them first")
    _expand(config.nav)
    return config


def _expand(nav: list[Any]) -> None:
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                if "methods/*" in value:
                    place = value.index("methods/*")
                    value[place : place + 1] = sorted(
                        f"methods/{page.name}" for page in (GENERATED / "methods").glob("*.md")
                    )
                _expand(value)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, those of the repository's root, and the files that pages link to."""
    for path in sorted(GENERATED.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            files.append(File.generated(config, path.relative_to(GENERATED).as_posix(), abs_src_path=str(path)))
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for target in sorted({target for page in files.documentation_pages() for target in _beyond(page)}):
        for name, content in _shown(target):
            made = File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files of the repository to their pages, and those of the table of methods to theirs."""
    source = page.file.src_uri
    if source.startswith("repository/"):
        return markdown
    if source == "index.md":
        page.meta["hide"] = ["navigation"]  # it has no pages beside it
    if source == "methods.md":
        page.meta["hide"] = ["toc"]  # the table is wide
        markdown = re.sub(r"^\| `([a-z_]+)` \|", r"| [`\1`](methods/\1.md) |", markdown, flags=re.MULTILINE)
        markdown = re.sub(r"(?<!`)``(?!`)", "`", markdown)
    here = PurePosixPath(_of_repository(source)).parent

    def led(match: re.Match[str]) -> str:
        target = _site_path(match[2], here)
        if target is None:
            return match[0]
        return f"{match[1]}{os.path.relpath(target, PurePosixPath(source).parent)}{match[3] or ''}"

    parts = _CODE.split(markdown)
    parts[::2] = [_PAPER.sub(_paper, _LINK.sub(led, part)) for part in parts[::2]]
    return "".join(parts)


def _paper(match: re.Match[str]) -> str:
    return f"[arXiv:{match[1]}](https://arxiv.org/abs/{match[1]})"


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Write equations as MathML."""

    def equation(match: re.Match[str]) -> str:
        latex, block = html.unescape(match[2]), match[1] == "div"
        try:
            made = _in_unicode(convert(latex, display="block" if block else "inline"))
        except Exception as cause:
            raise PluginError(f"an equation of {page.file.src_uri} is no LaTeX: {latex}: {cause!r}") from cause
        if unknown := re.search(r"\\[A-Za-z]+", made):  # a command that the converter does not know is left as it is
            raise PluginError(f"an equation of {page.file.src_uri} would be shown with {unknown[0]}: {latex}")
        return made

    return re.sub(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', equation, content, flags=re.DOTALL)


def _in_unicode(equation: str) -> str:
    """Write letters of other alphabets as they are in Unicode: browsers ignore ``mathvariant``."""

    def letter(match: re.Match[str]) -> str:
        kind, character = match[1].upper(), html.unescape(match[2])
        size = "DIGIT" if character.isdigit() else "CAPITAL" if character.isupper() else "SMALL"
        name = f"{kind} {size} {unicodedata.name(character).rpartition(' ')[2]}"
        try:
            return f"<mi>{unicodedata.lookup(f'MATHEMATICAL {name}')}</mi>"
        except KeyError:  # such as ℝ and ℒ, which Unicode has had for longer
            return f"<mi>{unicodedata.lookup(name)}</mi>"

    return re.sub(r'<m[in] mathvariant="(double-struck|script|fraktur|bold)">(.)</m[in]>', letter, equation)


def _of_repository(source: str) -> str:
    """The path in the repository of a page of the site; generated ones are as if they were in docs/."""
    return _ADDRESSES.get(source, f"docs/{source}")


def _site_path(link: str, here: PurePosixPath) -> str | None:
    """The page of a link from a folder of the repository; None if it is no path."""
    if re.match(r"[a-z]+:", link) or link.startswith("/"):
        return None
    target = os.path.normpath(here / link)
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    path = ROOT / target
    if path.is_file() and len(path.read_text(encoding="utf-8")) > _LONGEST:
        return f"repository/{target}"
    return f"repository/{target}.md"


def _beyond(page: File) -> Iterator[str]:
    """The paths in the repository, outside of docs/, to which a page links."""
    here = PurePosixPath(_of_repository(page.src_uri)).parent
    for number, part in enumerate(_CODE.split(page.content_string)):
        if number % 2:
            continue
        for match in _LINK.finditer(part):
            site = _site_path(match[2], here)
            target = os.path.normpath(here / match[2])
            if site and site.startswith("repository/") and (ROOT / target).exists():
                yield target


def _shown(target: str) -> Iterator[tuple[str, str]]:
    """The pages for a file or a folder of the repository; a long file as it is."""
    path = ROOT / target
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    texts = {one: one.read_text(encoding="utf-8") for one in files}
    if path.is_file() and len(texts[path]) > _LONGEST:
        yield f"repository/{target}", texts[path]
        return
    parts = [f"# {target}"]
    for one, text in texts.items():
        title = [f"## {one.name}"] if path.is_dir() else []
        parts += [*title, f"~~~~{_LANGUAGES.get(one.suffix, 'text')}\n{text.rstrip()}\n~~~~"]
    yield f"repository/{target}.md", "\n\n".join(parts) + "\n"
