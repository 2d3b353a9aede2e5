import pytest

from asgi_enhance import ConfigError
from asgi_enhance.asgi.path import path_pattern


@pytest.mark.parametrize(
    ("templates", "fits", "others"),
    [
        ("/items", ["/items", "/items/"], ["/items/1", "/item", "/ITEMS", "//items"]),
        ("/items/", ["/items", "/items/"], ["/items/1"]),
        ("/", ["/"], ["/x", ""]),
        ("/items/{id}", ["/items/1", "/items/1/"], ["/items", "/items/", "/items/1/2"]),
        ("/items/{id}/parts", ["/items/1/parts"], ["/items/1"]),
        ("/files/{rest:path}", ["/files/a", "/files/a/b/c"], ["/file/a", "/files"]),
        ("/api/*", ["/api", "/api/", "/api/x/y"], ["/apix"]),
        ("/api*", ["/api", "/apix", "/api/x"], ["/ap"]),
        ("*", ["/", "/x/y", "/a\nb"], []),
        ("/a.b", ["/a.b"], ["/axb"]),
        (["/a", "/b/{c}"], ["/a", "/b/1"], ["/b"]),
    ],
)
def test_a_template_fits_its_paths_and_no_others(
    templates: str | list[str], fits: list[str], others: list[str]
) -> None:
    pattern = path_pattern(templates)
    assert [path for path in fits if not pattern.fullmatch(path)] == []
    assert [path for path in others if pattern.fullmatch(path)] == []


@pytest.mark.parametrize("template", ["items", "", "/a/{b", "/a/b}", "/*/b", "/a/{b:int}", "**"])
def test_a_broken_template_is_refused_by_name(template: str) -> None:
    with pytest.raises(ConfigError, match="path"):
        path_pattern(template)
