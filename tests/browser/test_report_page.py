"""report.html in a real browser: filters filter, nothing is loaded, no text runs, it fits a phone."""

import io
import json
import shutil

import pytest
from PIL import Image

from eval.report import __main__ as report
from eval.runs import sha256_json
from llava.imagechain.story import bucket_of, storyframes_features

EVIL = "<script>window.forged = 1</script><img src=\"https://example.invalid/x\" onerror='window.forged = 1'>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# story id: (number of scenes, word in its text, verdict of mllm, verdict of imagechain)
STORIES = {
    "a": (2, "bicycle", "no", "yes"),
    "b": (2, "kitchen", "no", "unparsed"),
    "c": (3, "bicycle", "yes", "yes"),
    "d": (5, EVIL, None, "no"),
}


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """Write a report of four stories and two variants with the real command."""
    import datasets

    folder = tmp_path_factory.mktemp("report")
    data = io.BytesIO()
    Image.new("RGB", (320, 200), "teal").save(data, "JPEG")
    buckets: dict[str, list[dict]] = {}
    for story_id, (count, word, *_) in STORIES.items():
        texts, times = [*(f"scene {i} {word}" for i in range(count - 1)), word], [float(i) for i in range(count)]
        row = {
            "sentence_parts": texts, "start_times": times, "end_times": times, "background_description": "",
            "video_name": "v " + word, "question_info": "", "num_actors_in_video": 1, "caption": "",
            "sentence_parts_nocontext": texts, "subsampled_frames_per_scene": [times[:2]] * count,
            "story_id": story_id, "scenes": [[{"bytes": data.getvalue(), "path": None}] * 2] * count,
            "num_scenes": count,
        }  # fmt: skip
        buckets.setdefault(bucket_of(count), []).append(row)
    for bucket, rows in buckets.items():
        datasets.Dataset.from_list(rows, features=storyframes_features()).save_to_disk(str(folder / bucket / "val"))
    for number, variant in enumerate(("mllm", "imagechain")):
        run = folder / variant
        run.mkdir()
        with (run / "predictions.jsonl").open("w") as predictions, (run / "judgments.jsonl").open("w") as judgments:
            for story_id, (count, word, *verdicts) in STORIES.items():
                verdict, text = verdicts[number], f"{variant} says {word}"
                row = {"id": story_id, "variant": variant, "num_scenes": count, "prediction": text, "reference": word}
                predictions.write(json.dumps(row) + "\n")
                judgment = {"verdict": "no" if verdict == "unparsed" else verdict, "parsed": verdict != "unparsed"}
                pair = sha256_json([word, text])
                judgment |= {"id": story_id, "answer": EVIL, "judge": "mock", "pair_sha256": pair}
                judgments.write(json.dumps(judgment) + "\n")
    runs = [str(folder / "mllm"), str(folder / "imagechain")]
    assert report.main(["--runs", *runs, "--stories", str(folder), "--output", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    """Start the system's Chromium, or say why not."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this system (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=300_000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, page_path):
    """Open the report without a network, noting all requests and complaints."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    context.set_default_timeout(300_000)
    opened = context.new_page()
    opened.requested, opened.complaints = [], []
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(page_path.as_uri())
    yield opened
    context.close()


def shown(page):
    """Return the story ids of the visible cards."""
    return page.locator(".card:visible h3").all_text_contents()


@pytest.mark.parametrize(
    ("filters", "stories"),
    [
        ({}, "abcd"),
        ({"context": "2"}, "ab"),
        ({"context": "5"}, "d"),
        ({"verdict": "yes"}, "ac"),
        ({"verdict": "unscored"}, "d"),
        ({"verdict": "unparsed"}, "b"),
        ({"verdict": "no"}, "abd"),
        ({"variant": "imagechain", "verdict": "no"}, "bd"),
        ({"variant": "mllm", "verdict": "yes"}, "c"),
        ({"variant": "mllm", "verdict": "yes", "context": "2"}, ""),
        ({"search": "BICYCLE"}, "ac"),
        ({"search": "bicycle imagechain says", "context": "3"}, "c"),
        ({"search": "no such word"}, ""),
    ],
)
def test_filters_show_exactly_the_fitting_stories(page, filters, stories):
    for name, value in filters.items():
        if name == "search":
            page.fill("#search", value)
        else:
            page.select_option(f"#{name}", value)
    assert shown(page) == list(stories)
    assert page.inner_text("#shown") == f"{len(stories)} of 4 stories"
    assert page.locator("#none").is_visible() is (not stories)
    page.click("#clear")
    assert shown(page) == list("abcd")


def test_a_chosen_variant_hides_the_others(page):
    assert page.locator("[data-variant]:visible").count() == 8
    page.select_option("#variant", "imagechain")
    assert {item.get_attribute("data-variant") for item in page.locator("[data-variant]:visible").all()} == {
        "imagechain"
    }


@pytest.mark.parametrize(
    ("difference", "stories"),
    [("any", "a"), ("first", "a"), ("second", ""), ("both", "c"), ("neither", "b"), ("", "abcd")],
)
def test_two_variants_are_compared_where_they_differ(page, difference, stories):
    page.select_option("#variant", "imagechain")
    page.select_option("#against", "mllm")
    page.select_option("#difference", difference)
    # An unscored story tells nothing; only "all" shows it.
    assert shown(page) == [story for story in stories if story != "d" or not difference]
    assert page.locator(".pair:visible").count() == 1
    assert page.inner_text(".pair:visible").startswith("Not shown which of ImageChain and MLLM is better")
    for card in page.locator(".card:visible").all():
        boxes = [card.locator(f"[data-variant={key}]").bounding_box() for key in ("imagechain", "mllm")]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.click("#clear")
    assert shown(page) == list("abcd") and page.locator(".pair:visible").count() == 0


def test_the_matrix_of_pairs_reads_row_against_column(page):
    row = page.locator("table.pairs tbody tr", has_text="ImageChain").last
    assert row.locator("td").first.inner_text().split() == ["+33.3", "1", ":", "0", "p", "1.00"]


def test_a_cell_of_the_matrix_leads_to_the_stories_where_the_two_differ(page):
    page.click("a[data-first='imagechain'][data-second='mllm']")
    assert (page.input_value("#variant"), page.input_value("#against")) == ("imagechain", "mllm")
    assert shown(page) == list("a") and page.locator("p.pair:visible").count() == 1


def test_nothing_is_loaded_from_anywhere(page, page_path):
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(200)
    assert [url for url in page.requested if not url.startswith("data:")] == [page_path.as_uri()]
    assert page.complaints == []
    assert page.evaluate("[...document.images].every((i) => i.loading === 'lazy' || i.naturalWidth > 0)")


def test_markup_in_texts_is_text(page):
    assert page.evaluate("window.forged") is None
    assert page.locator(".card script, .card img:not([src^='data:'])").count() == 0
    assert EVIL in page.locator(".card").nth(3).text_content()


def test_even_injected_markup_could_not_run(page):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.forged = 1\">')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.forged = 1'}))")
    page.wait_for_timeout(100)
    assert page.evaluate("window.forged") is None
    assert any("Content Security Policy" in text for text in page.complaints)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_mode_is_followed(page):
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="light")
    light = background()
    page.emulate_media(color_scheme="dark")
    assert background() != light
