"""The pages that the tests read as a user does."""

from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = {
    path: path.read_text()
    for path in (
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "FineHarm" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
