"""The report and the review page in a real browser: every control used, no error, nothing asked of the network."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fcdd.io import storage
from jobs import results
from jobs.labels import label_drawings, label_files, label_store
from jobs.training import prepare
from jobs.training.settings import TrainSettings
from schemas import LABELS, Layout
from tests.hostile import HOSTILE
from tests.labelling import say
from tests.line import Line, picture, run_verb

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = os.environ.get("SCREENSHOTS")
needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what it complained of and asked for."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.page: Page = browser.new_context(**options).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)

    def asked(self) -> set[str]:
        """Everything but what is within the page."""
        return {url for url in self.requests if not url.startswith("data:")}


def until(page: Page, expression: str) -> None:
    """Wait for it, asked from outside: the page's own policy forbids it to evaluate text."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


@pytest.fixture(scope="module")
def report(nights: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    run_verb("report", "--results", nights.results, "--date", "2026-11-02", "--images", "12", "--output", str(path))
    return path


def opacity(page: Page, selector: str) -> float:
    page.wait_for_timeout(250)  # it fades
    return float(page.locator(selector).first.evaluate("element => getComputedStyle(element).opacity"))


@needs_a_browser
def test_the_report_works_by_mouse_and_by_keyboard(browser: Browser, report: Path, nights: Line) -> None:
    watched = Watched(browser)
    page = watched.page
    page.goto(report.as_uri())
    watched.screenshot("report-light")
    record = nights.records()[1]
    cards = page.locator(".card b").all_inner_texts()
    assert cards[:4] == [str(n) for n in (record.num_anomalous, record.num_discoveries, record.num_scored, 2)]
    assert page.locator("h1 .verdict").inner_text() == record.drift.verdict
    figures = page.locator("figure.worst")
    expect(figures).to_have_count(12)
    worst = [image.image_uri for image in results.open_run(nights.results, record.run_id).images()]
    assert figures.first.locator("p.uri").text_content() == worst[0]
    broken = "images => images.filter(image => !image.complete || !image.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
    decoded = "images => Promise.all(images.map(each => Object.assign(new Image(), {src: each.href.baseVal}).decode()))"
    assert len(page.locator(".view svg image").evaluate_all(decoded)) == 24  # each of them, and its heatmap

    layer, one = "figure.worst image.over", page.locator("figure.worst .view").first
    assert opacity(page, layer) == 1
    one.click()
    assert opacity(page, layer) == 0  # this one is switched
    assert opacity(page, "#image-2 image.over") == 1  # and no other
    one.click()
    page.locator("#heat").click()
    assert opacity(page, layer) == 0
    page.keyboard.press("h")
    assert opacity(page, layer) == 1
    assert opacity(page, "figure.worst g.over") == 1
    page.keyboard.press("r")
    assert opacity(page, "figure.worst g.over") == 0
    page.locator("#boxes").click()
    assert opacity(page, "figure.worst g.over") == 1
    assert "L" in (page.locator("figure.worst g.over path").first.get_attribute("d") or "")  # no box of whole cells

    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "image-3"  # the first was clicked
    page.keyboard.press("Enter")
    large = page.locator("#large")
    expect(large).to_be_visible()
    expect(large).to_contain_text(re.compile(r"^\s*3\s"))
    page.keyboard.press("ArrowRight")
    expect(large).to_contain_text(re.compile(r"^\s*4\s"))
    large.locator(".view").click()
    assert page.locator("#image-4 .one").is_checked()  # the small one follows
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    page.locator("figure.worst a[href^='#alike-']").first.click()
    expect(page.locator("tr[id^=alike-]").first).to_be_in_viewport()
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.locator("#drift ~ details summary").first.click()  # it was open
    assert [
        page.locator(f"#{part}").count() for part in ("scores", "nights", "drift", "quarantine", "time", "model")
    ] == [1] * 6
    assert page.locator("#drift ~ details .maps img").count() >= 3
    card = page.locator(".modelcard")
    expect(card.locator("h3")).to_contain_text("Anomaly detector")
    expect(card.locator("li").first).to_contain_text("network ")
    expect(card.locator("th").first).to_have_text("option")
    expect(page.get_by_text("not_an_image").first).to_be_visible()
    assert watched.complaints == []
    assert watched.asked() == {report.as_uri()}


@needs_a_browser
@pytest.mark.parametrize("width", [1400, 900, 400])
def test_headings_and_images_that_are_jumped_to_are_not_below_the_bar(
    browser: Browser, report: Path, width: int
) -> None:
    page = Watched(browser, viewport={"width": width, "height": 700}).page
    page.goto(report.as_uri())
    seen = "e => { const r = e.getBoundingClientRect(); return document.elementFromPoint(r.left + 9, r.top + 9) === e }"
    for link in page.locator("nav a").all():
        link.click()
        heading = page.locator(str(link.get_attribute("href")))
        assert heading.evaluate(f"e => ({seen})(e) || e.getBoundingClientRect().top > 300"), link.inner_text()
    page.goto(f"{report.as_uri()}#image-9")
    free = (
        "e => document.querySelector('.controls').getBoundingClientRect().bottom <= e.getBoundingClientRect().top + 1"
    )
    assert page.locator("#image-9 .view").evaluate(free)


@needs_a_browser
def test_every_number_of_the_report_is_explained_by_keyboard(browser: Browser, report: Path) -> None:
    page = Watched(browser).page
    page.goto(report.as_uri())
    assert page.locator(".card").count() == page.locator(".card details.why").count()
    for part in ("worst", "scores", "drift", "quarantine", "time"):
        assert page.locator(f"#{part} ~ .explained summary").first.inner_text().startswith("What th"), part
    page.locator(".card details.why summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Images whose score is above the threshold")).to_be_visible()
    page.locator("#worst ~ .explained summary").focus()
    page.keyboard.press("Space")
    expect(page.get_by_text("Share of the 200 nominal images of the calibration")).to_be_visible()


@needs_a_browser
def test_charts_and_the_colour_scale_have_numbers(browser: Browser, report: Path, nights: Line) -> None:
    page, record = Watched(browser).page, nights.records()[1]
    page.goto(report.as_uri())
    scale = page.locator("svg.scale text").all_text_contents()
    assert (scale[0], scale[2], scale[-1]) == ("0", f"{record.map_threshold:.2g}", f"{9 * record.map_threshold:.2g}+")
    for chart, ticks in (("histogram", ["100 %", "10 %", "1 %"]), ("share of alarms", ["0 %", "11-01", "11-02"])):
        texts = page.locator(f"svg[aria-label*='{chart}'] .axis text").all_text_contents()
        assert set(ticks) <= set(texts), chart
    assert page.locator("svg[aria-label='seconds by stage'] .axis text").first.text_content() == "0 s"


@needs_a_browser
def test_the_report_is_whole_without_scripts_in_the_dark_and_on_paper(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    watched = Watched(browser, java_script_enabled=False, color_scheme="dark")
    watched.page.goto(report.as_uri())
    watched.screenshot("report-dark")
    assert watched.page.locator("figure.worst").count() == 12
    watched.page.locator("figure.worst .view").first.click()
    expect(watched.page.locator(".one").first).to_be_checked()
    watched.page.locator("#boxes").click()
    watched.page.locator("summary").first.click()
    dark = Watched(browser, color_scheme="dark")
    dark.page.goto(report.as_uri())
    channels = re.findall(r"\d+", dark.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert max(map(int, channels[:3])) < 60
    dark.page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    dark.page.emulate_media(media="print")
    expect(dark.page.locator(".controls")).to_be_hidden()
    assert watched.complaints == dark.complaints == []


@needs_a_browser
def test_hostile_names_are_text_in_the_report(browser: Browser, hostile: str, tmp_path: Path) -> None:
    """Its images and its bundle are out of reach, too: the report says so and is written all the same."""
    path = tmp_path / "report.html"
    run_verb("report", "--results", hostile, "--images", "8", "--output", str(path))
    watched = Watched(browser)
    watched.page.goto(path.as_uri())
    watched.screenshot("report-hostile")
    names = watched.page.locator("figure.worst p.uri").all_text_contents()
    printable = [re.sub(r"[\n\r\u202e\u200b]", "\N{REPLACEMENT CHARACTER}", name) for name in HOSTILE]
    assert names[: len(HOSTILE)] == printable
    assert watched.page.locator("script").count() == 1
    text = watched.page.locator("body").inner_text()
    assert "8 of them cannot be shown" in text
    assert "There are no heatmaps and no calibration in this report" in text
    assert "=HYPERLINK(1)" in text
    assert "=cmd|' /C calc'!A0" in watched.page.locator("#quarantine ~ details td.uri").all_text_contents()
    assert watched.complaints == []
    assert watched.asked() == {path.as_uri()}


@needs_a_browser
def test_a_script_that_got_into_a_report_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(
        report.read_text().replace("<h1>", "<img src=x onerror='window.bad=1'><script>window.bad=1</script><h1>")
    )
    watched = Watched(browser)
    watched.page.goto(path.as_uri())
    assert watched.page.evaluate("window.bad") is None
    assert any("Content Security Policy" in each for each in watched.complaints)


@pytest.mark.slow
def test_a_report_of_200_images_is_below_10_megabytes_whatever_they_show(tmp_path: Path, calibrated: str) -> None:
    """Noise is what a codec can do least about."""
    line = Line(str(tmp_path))
    random = np.random.default_rng(0)
    for index in range(200):
        noise = Image.fromarray(random.integers(0, 256, (360, 480, 3)).astype(np.uint8))
        path = Path(line.root, f"images/{index:03d}.bmp")
        path.parent.mkdir(exist_ok=True)
        noise.save(path)
    line.around(
        *("score", "--bundle", calibrated, "--images", f"{line.root}/images", "--workers", "0", "--date", "2026-11-01")
    )
    run_verb("report", "--results", line.results, "--images", "200", "--output", f"{line.root}/report.html")
    text = Path(line.root, "report.html").read_text()
    assert (
        text.count('<figure class="worst"') + sum(map(int, re.findall(r'class="n">(\d+)</td><td><details', text)))
        == 200
    )
    assert len(text) < 10_000_000


def test_nightly_writes_the_report_once_and_a_failure_is_tried_again(tmp_path: Path, calibrated: str) -> None:
    line = Line(str(tmp_path))
    for page in storage.pages(calibrated):
        for info in page:
            storage.write(f"{line.root}/bundle/{info.uri.rsplit('/', 1)[1]}", storage.read(info.uri))
    line.upload("nights/2026-11-01", 20, seed=1)
    folder = Path(line.results, "reports")
    folder.mkdir(parents=True)
    (folder / "collection=c").write_text("in the way")
    failed = line.nightly("--report")
    assert failed.returncode == 1
    assert "is committed, but its report could not be written" in failed.stderr
    (folder / "collection=c").unlink()
    assert "report       file://" in line.nightly("--report", check=True).stdout
    [record] = line.records()
    uri = Layout(f"file://{line.results}").report("c", record.day, record.run_id)
    written = storage.stat(uri)
    line.nightly("--report", check=True)
    assert storage.stat(uri) == written
    assert record.run_id.encode() in storage.read(uri)
    line.upload("nights/2026-11-02", 20, seed=2)
    line.nightly(day=2, check=True)
    assert len(list(folder.rglob("*.html"))) == 1


@contextlib.contextmanager
def reviewing(line: Line, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`fcdd review`, until it is left; its address."""
    command = ["review", "--results", line.results, "--date", "2026-11-02", "--port", "0", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("open "):
                break
        else:
            raise AssertionError(process.communicate())
        yield text.split()[1], process
    finally:
        process.kill()
        process.communicate()


def labels(line: Line) -> dict[str, dict[str, Any]]:
    path = f"{line.results}/labels/collection=c/labels.parquet"
    table = pq.read_table(path, partitioning=None)
    assert table.schema.equals(LABELS, check_metadata=True)
    return {row["image_uri"]: row for row in table.to_pylist()}


def apart_from_labels(line: Line) -> dict[Path, bytes]:
    """What a review must not touch: all but the labels, and the leases by which their writers take turns."""
    files = (path for path in Path(line.root).rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not {"labels", "_leases"} & {*path.parts}}


@needs_a_browser
def test_the_review_page_labels_every_image_in_every_way(browser: Browser, nights: Line) -> None:
    scores = apart_from_labels(nights)
    with reviewing(nights, "--images", "12", "--reviewer", "ann") as (address, process):
        watched = Watched(browser, viewport={"width": 1200, "height": 800})
        page = watched.page
        page.goto(address)
        uris = [image.image_uri for image in results.open(nights.results, date="2026-11-02").images()]
        expect(page.locator("#name")).to_have_text(uris[0])
        expect(page.locator("#picture")).to_have_js_property("naturalWidth", 56)
        until(page, "document.getElementById('layer').naturalWidth > 0")
        watched.screenshot("review")

        page.keyboard.press("h")
        assert opacity(page, "#layer") == 0
        page.locator("#heat").click()
        assert opacity(page, "#layer") == 1
        page.keyboard.press("r")
        until(page, "document.querySelectorAll('#lines path').length > 2")
        assert opacity(page, "#lines .outline") == 0
        page.locator("#boxes").click()
        assert opacity(page, "#lines .outline") == 1
        assert opacity(page, "#lines .level") == 0
        page.keyboard.press("l")
        assert opacity(page, "#lines .level") == 1
        page.locator("#levels").click()

        page.locator("#false").click()
        expect(page.locator("#name")).to_have_text(uris[1])  # and on
        page.keyboard.press("b")
        expect(page.locator("#name")).to_have_text(uris[2])
        page.keyboard.press("d")
        expect(page.locator("#name")).to_have_text(uris[3])
        until(page, "sending.size == 0")
        found = labels(nights)
        assert [found[uri]["label"] for uri in uris[:3]] == [0, -1, 1]
        assert found[uris[2]]["mask_uri"] == ""
        assert found[uris[2]]["reviewer"] == "ann"

        # A box and a stroke: whoever draws says that there is a defect.
        stage = page.locator("#stage").bounding_box()
        assert stage is not None

        def drag(x0: float, y0: float, x1: float, y1: float) -> None:
            page.mouse.move(stage["x"] + x0 * stage["width"], stage["y"] + y0 * stage["height"])
            page.mouse.down()
            page.mouse.move(stage["x"] + x1 * stage["width"], stage["y"] + y1 * stage["height"], steps=4)
            page.mouse.up()

        page.keyboard.press("x")
        drag(0.25, 0.25, 0.5, 0.5)
        expect(page.locator("#state")).to_have_text("defect")
        page.locator("#tool-brush").click()
        page.locator("#size").fill("10")
        drag(0.75, 0.75, 0.9, 0.9)
        page.keyboard.press("m")
        # Gone before the answer came: nothing of the drawing may be lost.
        page.keyboard.press("ArrowRight")
        expect(page.locator("#name")).to_have_text(uris[4])
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#state")).to_have_text("defect")
        until(page, "sending.size == 0")
        row = labels(nights)[uris[3]]
        [box] = row["boxes"]
        assert [box[name] for name in ("x0", "y0", "x1", "y1")] == pytest.approx([14, 10, 28, 20], abs=1)
        mask = np.asarray(Image.open(row["mask_uri"].removeprefix("file://")))
        assert (mask.shape, set(np.unique(mask))) == ((40, 56), {0, 255})
        assert (mask[box["y0"] : box["y1"], box["x0"] : box["x1"]] == 255).all()
        assert mask[33, 46] == 255
        assert mask[5, 50] == 0
        watched.screenshot("review-drawn")

        # Said again, the drawing stays, also after a slip; cleared, it goes; taken back, all goes.
        for key in ("d", "ArrowLeft", "f", "ArrowLeft", "d"):
            while page.locator("#name").text_content() != uris[3] and key != "ArrowLeft":
                page.keyboard.press("ArrowLeft")
            page.keyboard.press(key)
        until(page, "sending.size == 0")
        assert labels(nights)[uris[3]]["mask_uri"] == row["mask_uri"]
        page.keyboard.press("k")
        page.locator("#previous").click()
        page.locator("#next").click()
        page.keyboard.press("j")
        while page.locator("#name").text_content() != uris[3]:
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("c")
        until(page, "sending.size == 0")
        assert (labels(nights)[uris[3]]["boxes"], labels(nights)[uris[3]]["mask_uri"]) == ([], "")
        page.locator("#erase").click()
        page.keyboard.press("u")
        expect(page.locator("#state")).to_have_text("")
        until(page, "sending.size == 0")
        assert uris[3] not in labels(nights)
        page.locator("#unlabelled").click()
        while "12 of 12" not in (page.locator("#progress").text_content() or ""):
            before = page.locator("#progress").text_content()
            page.keyboard.press("f")
            expect(page.locator("#progress")).not_to_have_text(before or "")
        expect(page.locator("#progress")).to_have_text("12 of 12 labelled: that is all")
        assert watched.complaints == []
        assert all(url.startswith(address.partition("?")[0]) for url in watched.asked())
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=20)
    assert process.returncode == 0, complained
    assert re.search(
        r"labelled    12 of 12: 1 defect \(\d without an alarm\), 10 without a defect \(\d+ false alarms?\), ", said
    )
    assert ", 1 bad image\n" in said
    assert "next        fcdd calibrate --bundle" in said
    assert apart_from_labels(nights) == scores
    with reviewing(nights, "--images", "12") as (address, _):  # labels are there again
        page = Watched(browser).page
        page.goto(address)
        expect(page.locator("#progress")).to_have_text("12 of 12 labelled: that is all")
    found = results.open(nights.results).sql("SELECT label, count(*) FROM labels GROUP BY ALL ORDER BY ALL").fetchall()
    assert found == [(-1, 1), (0, 10), (1, 1)]


@needs_a_browser
def test_classes_and_notes_of_ones_own_are_kept_and_undone(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "12", "--defect-class", "dent") as (address, process):
        watched = Watched(browser, viewport={"width": 1200, "height": 900})
        page = watched.page
        page.goto(address)
        until(page, "items.length == 12")
        page.evaluate("show(0)")
        names = page.evaluate("items.map(item => item.name)")
        before = page.evaluate("items[0]")
        page.keyboard.press("1")
        page.evaluate("show(1)")
        page.keyboard.press("t")
        page.keyboard.type("  deep   scratch d")  # keys are letters here
        page.keyboard.press("Enter")
        until(page, "sending.size == 0")
        assert [labels(nights)[name]["defect_class"] for name in names[:2]] == ["dent", "deep scratch d"]
        page.evaluate("show(1)")
        expect(page.locator("#state")).to_have_text("defect: deep scratch d")
        expect(page.locator("#classes button.on")).to_have_text("2 deep scratch d")
        page.keyboard.press("w")
        page.keyboard.type("near the edge, f")
        page.keyboard.press("Escape")
        until(page, "sending.size == 0")
        row = labels(nights)[names[1]]
        assert (row["label"], row["defect_class"], row["note"]) == (1, "deep scratch d", "near the edge, f")
        watched.screenshot("review-classes")

        # Without a label yet, a note waits for one; undo brings each thing back, of whichever image.
        page.keyboard.press("u")
        expect(page.locator("#note")).to_have_value("")
        page.locator("#note").fill("a shadow only")
        page.locator("#next").click()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#note")).to_have_value("a shadow only")
        expect(page.locator("#draft")).to_be_visible()
        page.keyboard.press("f")
        until(page, "sending.size == 0")
        assert labels(nights)[names[1]]["note"] == "a shadow only"
        page.evaluate("show(7)")
        page.keyboard.press("Control+z")
        expect(page.locator("#rank")).to_have_text("2 of 12")
        expect(page.locator("#note")).to_have_value("a shadow only")
        until(page, "sending.size == 0")
        assert names[1] not in labels(nights)
        page.keyboard.press("z")
        expect(page.locator("#state")).to_have_text("defect: deep scratch d")
        until(page, "sending.size == 0")
        assert labels(nights)[names[1]] == row
        for _ in range(2):
            page.locator("#undo").click()
        page.keyboard.press("z")
        until(page, "sending.size == 0")
        assert page.evaluate("items[0]") == before
        expect(page.locator("#undo")).to_be_disabled()
        page.evaluate("show(0)")
        page.keyboard.press("1")
        until(page, "sending.size == 0")
        assert watched.complaints == []
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert "classes     dent 1" in said
    asked = "SELECT defect_class, count(*) FROM labels WHERE defect_class IS NOT NULL GROUP BY ALL"
    assert results.open(nights.results).sql(asked).fetchall() == [("dent", 1)]


@needs_a_browser
def test_what_could_not_be_kept_can_be_undone_as_if_it_had_not_been_said(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "12") as (address, _):
        page = Watched(browser).page
        page.goto(address)
        until(page, "items.length == 12")
        page.evaluate("show(3)")
        before = page.evaluate("items[3]")
        page.route("**/label/*", lambda route: route.fulfill(status=503, body="it could not be kept: the disk is full"))
        page.keyboard.press("b")
        expect(page.locator("#retry")).to_be_visible()
        page.keyboard.press("z")
        expect(page.locator("#unsaved")).to_be_hidden()
        assert page.evaluate("items[3]") == before


@needs_a_browser
def test_the_image_is_zoomed_and_moved_and_every_one_is_in_the_list(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "12") as (address, _):
        watched = Watched(browser, viewport={"width": 1200, "height": 800})
        page = watched.page
        page.goto(address)
        until(page, "items.length == 12")
        page.evaluate("show(2)")

        def frame() -> dict[str, float]:
            box = page.locator("#stage").bounding_box()
            assert box is not None
            return dict(box)

        whole = frame()
        x, y = whole["x"] + 0.25 * whole["width"], whole["y"] + 0.25 * whole["height"]
        page.mouse.move(x, y)
        page.mouse.wheel(0, -400)
        until(page, "zoom > 2")
        zoomed = frame()  # and the place under the mouse has stayed there
        assert (x - zoomed["x"]) / zoomed["width"] == pytest.approx(0.25, abs=0.02)
        assert (y - zoomed["y"]) / zoomed["height"] == pytest.approx(0.25, abs=0.02)
        page.mouse.down()
        page.mouse.move(x - 60, y - 40, steps=3)
        page.mouse.up()
        assert frame()["x"] == pytest.approx(zoomed["x"] - 60, abs=1)
        assert frame()["y"] == pytest.approx(zoomed["y"] - 40, abs=1)
        # What is drawn on a zoomed image lies where it was drawn.
        page.keyboard.press("x")
        now, before = frame(), page.evaluate("items[2]")
        page.mouse.move(now["x"] + 0.4 * now["width"], now["y"] + 0.4 * now["height"])
        page.mouse.down()
        page.mouse.move(now["x"] + 0.5 * now["width"], now["y"] + 0.5 * now["height"], steps=3)
        page.mouse.up()
        until(page, "sending.size == 0")
        [box] = page.evaluate("items[2].boxes")
        assert [box[name] for name in ("x0", "y0", "x1", "y1")] == pytest.approx([22.4, 16, 28, 20], abs=1.1)
        page.keyboard.press("x")
        watched.screenshot("review-zoomed")
        page.keyboard.press("z")  # and is undone without losing sight of it
        until(page, "sending.size == 0")
        assert page.evaluate("items[2]") == before
        expect(page.locator("#drawn path")).to_have_count(2 * len(before["boxes"]))
        assert frame() == now
        page.keyboard.press("0")
        assert frame() == whole
        # Of a large image more pixels are fetched, once they can be seen.
        assert page.evaluate("sharp.hasAttribute('src')") is False
        page.evaluate("items[2].width *= 100, items[2].height *= 100, zoomBy(3)")
        until(page, "sharp.naturalWidth > 0")
        page.evaluate("items[2].width /= 100, items[2].height /= 100, wholeImage()")
        page.locator("#larger").click()
        page.keyboard.press("-")
        assert frame() == pytest.approx(whole, abs=1)
        page.mouse.dblclick(x, y)
        until(page, "zoom > 1")
        page.keyboard.press("ArrowRight")
        until(page, "zoom == 1")  # the next one is shown whole

        thumbnails = page.locator("#list button")
        expect(thumbnails).to_have_count(12)
        until(page, "document.querySelector('#list img').naturalWidth > 0")
        thumbnails.nth(9).click()
        expect(page.locator("#rank")).to_have_text("10 of 12")
        expect(page.locator("#list [aria-current]")).to_have_text("10")
        expect(page.locator("#list [aria-current]")).to_be_in_viewport()
        page.keyboard.press("b")
        expect(thumbnails.nth(9)).to_have_class(re.compile("l-1"))
        assert "bad image" in (thumbnails.nth(9).get_attribute("aria-label") or "")
        until(page, "sending.size == 0")

        marks, threshold = page.locator("#marks span").all_inner_texts(), nights.records()[1].map_threshold
        assert (marks[0], marks[-1]) == ("0", f"{9 * threshold:.2g}+")
        expect(page.locator("#marks .threshold")).to_have_text(f"{threshold:.2g}")
        page.keyboard.press("?")
        expect(page.locator("#help")).to_contain_text("undo what you said or drew last")
        page.keyboard.press("d")  # nothing is said while one reads
        page.keyboard.press("Escape")
        expect(page.locator("#help")).to_be_hidden()
        assert page.evaluate("sending.size") == 0
        assert watched.complaints == []


@needs_a_browser
def test_fast_typing_and_a_slow_store_put_no_verdict_on_another_image(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "40") as (address, _):
        page = Watched(browser).page
        page.route("**/label/*", lambda route: (page.wait_for_timeout(250), route.continue_()))
        page.goto(address)
        until(page, "items.length == 40")
        page.evaluate("show(20)")  # from here on none has a label
        given = []
        for key, label in (("f", 0), ("d", 1), ("b", -1), ("d", 1), ("f", 0)):
            given.append((page.evaluate("at"), label))
            page.keyboard.press(key)  # and it goes on by itself, long before the answer
        assert [index for index, _ in given] == [20, 21, 22, 23, 24]
        until(page, "sending.size == 0")
        uris = [row["image_uri"] for row in results.open(nights.results, date="2026-11-02").rows(_REVIEWED)]
        found = labels(nights)
        assert [found[uris[index]]["label"] for index, _ in given] == [label for _, label in given]


_REVIEWED = "SELECT image_uri FROM scores ORDER BY anomaly_score DESC, image_uri LIMIT 40"


@needs_a_browser
def test_what_could_not_be_kept_is_shown_and_tried_again(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "12") as (address, _):
        watched = Watched(browser)
        page = watched.page
        page.goto(address)
        until(page, "items.length == 12")
        page.evaluate("show(5)")
        page.keyboard.press("f")
        until(page, "sending.size == 0")
        page.route("**/label/*", lambda route: route.fulfill(status=503, body="it could not be kept: the disk is full"))
        page.evaluate("show(5)")
        page.keyboard.press("x")
        stage = page.locator("#stage").bounding_box()
        assert stage is not None
        # Along the very edge: a box of one row of pixels at least.
        page.mouse.move(stage["x"] + 30, stage["y"] + 1)
        page.mouse.down()
        page.mouse.move(stage["x"] + 90, stage["y"] - 20, steps=3)
        page.mouse.up()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#retry")).to_have_text("1 not kept (6): try again")
        expect(page.locator("#message")).to_have_text("image 6 is not kept: it could not be kept: the disk is full")
        page.unroute("**/label/*")
        page.keyboard.press("b")  # another one is kept; the first is not forgotten
        until(page, "sending.size == 0")
        expect(page.locator("#retry")).to_be_visible()
        page.locator("#retry").click()
        expect(page.locator("#unsaved")).to_be_hidden()
        uri = page.evaluate("items[5].name")
        [box] = labels(nights)[uri]["boxes"]
        assert box["y1"] > box["y0"] == 0
        assert labels(nights)[uri]["label"] == 1


@needs_a_browser
def test_two_pages_do_not_undo_each_other(browser: Browser, nights: Line) -> None:
    with reviewing(nights, "--images", "12") as (address, _):
        first, second = Watched(browser).page, Watched(browser).page
        for page in (first, second):
            page.goto(address)
            until(page, "items.length == 12")
            page.evaluate("show(7)")
        first.keyboard.press("d")
        until(first, "sending.size == 0")
        second.keyboard.press("f")
        expect(second.locator("#message")).to_contain_text("image 8: somebody else labelled it meanwhile")
        assert labels(nights)[first.evaluate("items[7].name")]["label"] == 1
        second.evaluate("show(7)")
        expect(second.locator("#state")).to_have_text("defect")
        second.keyboard.press("f")  # now it is meant
        until(second, "sending.size == 0")
        assert labels(nights)[first.evaluate("items[7].name")]["label"] == 0


def ask(address: str, path: str, *, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """An answer of the server, after the token that the address may have was shown."""
    base, _, token = address.partition("?token=")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
    if token:
        opener.open(address, timeout=20).close()
    request = urllib.request.Request(
        base.rstrip("/") + path, body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_only_our_own_page_may_label(nights: Line) -> None:
    json_type = {"Content_Type": "application/json"}
    with reviewing(nights, "--images", "60") as (address, _):
        assert ask(address, "/items")[0] == 200
        assert ask(address, "/items", Host="evil.example")[0] == 400  # another name that was made to point run_verb
        verdict = b'{"label": 0}'
        assert ask(address, "/label/50", body=verdict, Origin="http://evil.example", **json_type)[0] == 403
        assert ask(address, "/label/50", body=verdict, Content_Type="text/plain")[0] == 415
        assert ask(address, "/label/50", body=b'{"label": 7}', **json_type)[0] == 422
        assert ask(address, "/label/50", body=b'{"label": 1, "extra": 1}', **json_type)[0] == 422
        code, why = ask(address, "/label/50", body=b'{"label": 1, "mask": "bm8gcG5n"}', **json_type)
        assert (code, why) == (422, "not a verdict: the mask is no PNG in base64")
        _, why = ask(address, "/label/50", body=b'{"label": 7}', **json_type)
        assert why == "not a verdict: label: Input should be -1, 0 or 1"
        outside = b'{"label": 1, "boxes": [{"x0": 100, "y0": 0, "x1": 120, "y1": 9}]}'
        assert "expected a box within 56 x 40 pixels" in ask(address, "/label/50", body=outside, **json_type)[1]
        big = b'{"label": 1, "mask": "' + b"A" * (label_drawings.MAX_MASK_CHARACTERS + 200_000) + b'"}'
        with contextlib.suppress(OSError):  # it may hang up while we are still sending
            assert ask(address, "/label/50", body=big, **json_type)[0] == 413
        for number in ("99999", "9" * 5000, "-1", "x", "%D9%A1"):
            for kind in ("picture", "thumbnail", "sharp", "layer", "contours", "mask"):
                assert ask(address, f"/{kind}/{number}")[0] == 404
            assert ask(address, f"/label/{number}", body=verdict, **json_type)[0] == 404
            assert ask(address, f"/undo/{number}", body=b'{"seen": null}', **json_type)[0] == 404
        assert ask(address, "/undo/50", body=b'{"seen": null}', Origin="http://evil.example", **json_type)[0] == 403
        assert ask(address, "/undo/50", body=b"{}", **json_type)[0] == 422
        assert ask(address, "/undo/50", body=b'{"seen": null}', **json_type)[0] == 409  # nothing was said of it
        long = b'{"label": 1, "defect_class": "' + b"x" * 81 + b'"}'
        assert "at most 80 characters" in ask(address, "/label/50", body=long, **json_type)[1]
        for nonsense in (
            '{"label": 1, "mask": "\u00e9"}'.encode(),
            b"[" * 100_000,
            b'{"label": 1' + b"0" * 400 + b"}",
            b"\xff",
            b'{"label": 0, "seen": "2026-01-01"}',
        ):
            assert ask(address, "/label/50", body=nonsense, **json_type)[0] in (409, 422)
        assert ask(address, "/../../etc/passwd")[0] == 404
        assert ask(address, "/")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_token_is_asked_for_beyond_this_machine_and_on_it(nights: Line, host: str) -> None:
    with reviewing(nights, "--host", host) as (printed, _):
        address, token = printed.split("?token=")
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert len(token) >= 32
        assert ask(address, "/items")[0] == 401
        assert ask(address, "/items?token=wrong")[0] == 401
        assert ask(address, "/label/0?token=" + token, body=b'{"label": 0}', Content_Type="application/json")[0] == 401
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
        with opener.open(f"{address}?token={token}", timeout=20) as answer:
            assert "token" not in answer.url  # it is in a cookie from now on
        with opener.open(f"{address}items", timeout=20) as answer:
            assert answer.status == 200


def test_one_review_of_a_collection_at_a_time(nights: Line) -> None:
    with reviewing(nights):
        second = run_verb("review", "--results", nights.results, "--port", "0", check=False)
        assert second.returncode == 6
        assert "review" in second.stderr


@pytest.mark.slow
def test_labels_feed_calibration_evaluation_and_training(nights: Line, tmp_path: Path) -> None:
    """As `fcdd review` keeps them: alarms that are real and false, a bad image, one with a mask."""
    line = Line(str(tmp_path))
    for name in ("results", "bundle", "images"):
        shutil.copytree(f"{nights.root}/{name}", f"{line.root}/{name}")
    shutil.rmtree(f"{line.results}/labels", ignore_errors=True)
    line.around("score", *scoring(line), "--date", "2026-11-03")
    night = results.open(line.results, date="2026-11-03")
    layout = Layout(night.location)
    said = label_store.Labels(layout, "c")
    rows = list(night.rows("SELECT * FROM scores ORDER BY anomaly_score DESC, image_uri"))
    alarms = [row for row in rows if row["is_anomalous"]]
    assert len(alarms) >= 6
    box = label_drawings.Box(x0=3, y0=4, x1=13, y1=20)
    for index, row in enumerate(alarms):
        defect = label_store.Verdict(label=1, boxes=(box,), defect_class="block", note="red")
        say(said, row, defect if index % 3 else label_store.Verdict(label=0, note="a reflection"))
    say(said, alarms[0], label_store.Verdict(label=-1))
    uri = layout.labels("c")
    asked = "SELECT defect_class, note, count(*) > 1 FROM labels WHERE label >= 0 GROUP BY ALL ORDER BY ALL"
    assert results.open(line.results).sql(asked).fetchall() == [("block", "red", True), (None, "a reflection", True)]
    real = [row for row in alarms if said.get(row)["label"] == 1]  # type: ignore[index]
    recalibrated = line.around(
        *("calibrate", "--bundle", f"{line.root}/bundle", "--reviewed", uri, "--date", "2026-11-03"),
        *("--alpha", "0.05", "--output", f"{line.root}/again"),
    ).stdout
    # Neither the real defects nor the bad image are nominal.
    assert f"images      {len(rows) - len(real) - 1} nominal ones" in recalibrated
    evaluated = line.around("evaluate", "--labels", uri, "--date", "2026-11-03").stdout
    assert f"{len(alarms) - len(real) - 1} nominal, {len(real)} anomalous" in evaluated
    listed = label_files.read_anomalies(uri)
    assert [each.image for each in listed] == sorted(row["image_uri"] for row in real)
    masks = [np.asarray(Image.open(each.mask.removeprefix("file://"))) for each in listed if each.mask]
    assert len(masks) == len(real)
    assert all((mask > 0).sum() == 160 for mask in masks)
    # A picture that was replaced since it was labelled has no label, and trains nothing.
    storage.write(real[0]["image_uri"], picture(77))
    line.around("score", *scoring(line), "--date", "2026-11-04")
    unseen = line.around(
        *("calibrate", "--bundle", f"{line.root}/bundle", "--reviewed", uri, "--date", "2026-11-04"),
        *("--output", f"{line.root}/third", "--alpha", "0.05"),
    ).stdout
    assert f"images      {len(rows) - len(real)} nominal ones" in unseen
    settings = TrainSettings.parse(["--images", "x", "--bundle", "y", "--anomalous", uri])
    assert [image.uri for image, _ in prepare.known_anomalies(settings)] == sorted(row["image_uri"] for row in real[1:])
    # A drawing that nobody names any more is garbage, and no other.
    say(said, real[1], label_store.Verdict(label=1, clear=True, boxes=(label_drawings.Box(x0=0, y0=0, x1=9, y1=9),)))
    folder = Path(f"{line.results}/labels/collection=c/masks")
    assert len(list(folder.iterdir())) == 2
    say(said, real[1], label_store.Verdict(label=1, clear=True))
    run_verb("gc", "--results", line.results, "--older-than-days", "0")
    assert len(list(folder.iterdir())) == 1


def scoring(line: Line) -> tuple[str, ...]:
    return ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--workers", "0")
