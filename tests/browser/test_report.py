"""The report in a real browser: ``make test-browser``."""

import pytest

from tests.browser.program import launched
from tests.report.pages import evaluated_run, other_run, write

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with launched() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tiny_data_dir):
    """Paths and contents of the page of one run, and of that of two."""
    folder = tmp_path_factory.mktemp("runs")
    one, config = evaluated_run(folder / "one", tiny_data_dir)
    two = other_run(one, folder / "two")
    found = {}
    for name, runs in (("one", [one]), ("both", [one, two])):
        path = folder / f"{name}.html"
        found[name] = path, write(runs, config, path).gallery
    return found


@pytest.fixture
def visit(browser, pages):
    """Opens a page; in the end nothing was reported on the console, and nothing fetched."""
    contexts, complaints, requests = [], [], []

    def start(name, fragment="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        path, data = pages[name]
        page.goto(f"file://{path}{fragment}")
        return page, data["protocols"][0]["queries"]

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
    outside = [url for url in requests if not url.startswith("data:")]
    assert len(outside) == len(contexts) and all(url.startswith("file:") for url in outside)


def shown(page):
    """The queries in the list, by their numbers."""
    return page.eval_on_selector_all("#list .query", "all => all.map(q => Number(q.dataset.query))")


def select(page, name, value):
    page.select_option(f"#controls [name={name}]", value)


def test_sort(visit):
    page, queries = visit("one")
    by_number = {query["n"]: query for query in queries}

    def values(key):
        return [key(by_number[number]) for number in shown(page)]

    def score(query):
        return query["r"][0]["ap"]

    assert values(score) == sorted(map(score, queries))
    select(page, "sort", "best")
    assert values(score) == sorted(map(score, queries), reverse=True)
    select(page, "sort", "hidden")
    assert values(lambda query: query["o"]) == sorted((q["o"] for q in queries), reverse=True)
    select(page, "sort", "camera")
    assert values(lambda query: query["c"]) == sorted(query["c"] for query in queries)


def test_filter_and_search(visit, pages):
    page, _ = visit("one")
    select(page, "protocol", "holistic")  # where some are right
    queries = pages["one"][1]["protocols"][1]["queries"]

    def expect(keeps):
        assert sorted(shown(page)) == [query["n"] for query in queries if keeps(query)]

    right = [query["r"][0]["first"] == 1 for query in queries]
    assert any(right) and not all(right)
    select(page, "outcome", "right")
    expect(lambda query: query["r"][0]["first"] == 1)
    select(page, "outcome", "wrong")
    expect(lambda query: query["r"][0]["first"] != 1)
    select(page, "outcome", "")
    camera = queries[0]["c"]
    select(page, "camera", str(camera))
    expect(lambda query: query["c"] == camera)
    select(page, "camera", "")
    page.select_option("#controls [name=hidden]", index=1)
    low, high = page.evaluate("JSON.parse(document.getElementById('data-json').text).bins[0]")
    expect(lambda query: low <= query["o"] < high)
    select(page, "hidden", "")
    identity = queries[3]["i"]
    page.fill("#controls [name=identity]", str(identity))
    expect(lambda query: query["i"] == identity)
    assert f"of {len(queries)} queries" in page.inner_text("#count")


def test_frames_differ_in_shape_and_have_words(visit):
    page, _ = visit("one")
    styles = {}
    for kind in "mij":
        frame = page.query_selector(f"#list .frame.{kind}")
        style = "f => [getComputedStyle(f).borderTopStyle, f.querySelector('.badge').textContent]"
        styles[kind] = tuple(frame.evaluate(style))
    assert styles == {"m": ("solid", "✓"), "i": ("dashed", "✗"), "j": ("dotted", "○")}
    alts = page.eval_on_selector_all("#list img", "all => all.map(i => [i.alt, i.naturalWidth])")
    assert len(alts) > 100 and all(alt for alt, _ in alts)
    assert any(width > 0 for _, width in alts)


def test_open_a_query(visit):
    page, queries = visit("one")
    order = shown(page)
    page.click("#list .query a")
    title = page.inner_text("#viewer-title")
    first = queries[order[0]]
    assert f"query {order[0]}: identity {first['i']}, camera {first['c']}" in title
    assert page.evaluate("location.hash") == f"#q=occluded/{order[0]}"
    assert page.locator("#viewer .top > li").count() == 10
    # Energy of the main branch, energy and pose map of each of eight groups.
    assert page.locator("#viewer canvas").count() == 1 + 8 + 8
    painted = page.eval_on_selector(
        "#viewer canvas", "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    assert max(painted[3::4]) == 255  # opaque where the energy is highest
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"location.hash === '#q=occluded/{order[1]}'")
    assert f"query {order[1]}:" in page.inner_text("#viewer-title")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"location.hash === '#q=occluded/{order[0]}'")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('viewer').open")
    assert page.evaluate("location.hash") == ""
    # The arrows go through the list, too.
    page.keyboard.press("ArrowDown")
    number = page.evaluate("document.activeElement.closest('.query').dataset.query")
    assert int(number) == order[1]


def test_a_link_opens_its_query(visit):
    page, _ = visit("one", "#q=holistic/7")
    assert page.inner_text("#viewer-title").startswith("holistic, query 7:")
    assert page.input_value("#controls [name=protocol]") == "holistic"
    page.go_back()


def test_compare_two_runs(visit):
    page, queries = visit("both")

    def gap(query):
        scores = [ranking["ap"] for ranking in query["r"]]
        return max(scores) - min(scores)

    assert page.input_value("#controls [name=sort]") == "difference"
    by_number = {query["n"]: query for query in queries}
    gaps = [gap(by_number[number]) for number in shown(page)]
    assert gaps == sorted(map(gap, queries), reverse=True)
    assert page.locator("#list .query").first.locator(".ranking").count() == 2
    select(page, "outcome", "only-first")
    right = {q["n"] for q in queries if q["r"][0]["first"] == 1 and q["r"][1]["first"] != 1}
    assert {*shown(page)} == right
    select(page, "outcome", "")
    page.click("#list .query a")
    headings = page.locator("#viewer section h4").all_inner_texts()
    assert [heading.partition(":")[0].strip() for heading in headings] == ["one", "two"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction(visit, scheme):
    phone = {"width": 390, "height": 844}
    page, _ = visit("both", color_scheme=scheme, viewport=phone)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#list .query a")
    assert page.evaluate("document.getElementById('viewer').scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_without_scripts_the_tables_remain(visit):
    page, queries = visit("one", java_script_enabled=False)
    assert "need JavaScript" in page.inner_text("main")
    assert not page.locator("#controls").is_visible()
    page.click("summary:has-text('occluded: the queries as a table')")
    rows = page.locator("details[open] tr")
    assert rows.count() == 1 + len(queries)
