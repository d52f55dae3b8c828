"""The report in a real browser, by mouse and keyboard; text in the report is never executed."""

import os
from pathlib import Path

import pytest

from tests.browser.conftest import LOOKS, address
from tests.browser.hostile import ALERT, IMAGE, LINK, NAMES

PAGES = ["grid", "radii", "one", "hostile"]
DRAWN = "(id) => document.querySelector(`#${id} .canvas`).data"
SHARES = "(cells) => cells.map((cell) => Number(cell.dataset.value))"


def shown_rows(page):
    return page.locator("#table tbody tr:visible")


def column(page, name):
    heads = page.locator("#table thead th").all_inner_texts()
    number = next(at for at, head in enumerate(heads) if head.startswith(name)) + 1
    return page.locator(f"#table tbody tr td:nth-child({number})")


def cells(page):
    """The numbers of the heat map, as shown in its table."""
    details = page.locator("#map details")
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    details.locator("tbody tr").first.wait_for()  # it is filled when the browser reports that it is open
    return details.locator("tbody tr").all_inner_texts()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_and_do_not_scroll_sideways(open_report, axe, name, look):
    page = open_report(name, look)
    for details in page.locator("details").all():
        details.locator("summary").click()
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    bad = [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]
    assert not bad
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if place := os.environ.get("RAIOPT_SCREENSHOTS"):
        page.reload()
        page.locator(".canvas .main-svg").first.wait_for()
        page.screenshot(path=Path(place) / f"{name}-{look}.png", full_page=True)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_table_is_sorted(open_report, by):
    page = open_report("grid")
    head = page.locator("#table").get_by_role("columnheader", name="robust")
    button = head.get_by_role("button")

    def press():
        if by == "mouse":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")

    before = column(page, "robust").evaluate_all(SHARES)
    press()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "robust").evaluate_all(SHARES) == sorted(before)
    press()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "robust").evaluate_all(SHARES) == sorted(before, reverse=True)
    page.locator("#table").get_by_role("columnheader", name="optim").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    texts = column(page, "optim").all_inner_texts()
    assert texts == sorted(texts)


def test_jobs_without_figures_stay_at_the_end_however_the_table_is_sorted(open_report):
    page = open_report("hostile")
    for _ in range(2):
        page.locator("#table").get_by_role("columnheader", name="robust").get_by_role("button").click()
        lost = page.locator("#table tbody tr").evaluate_all("(rows) => rows.map((row) => !!row.querySelector('.why'))")
        assert lost == sorted(lost)
        assert sum(lost) == 6
    states = page.locator("#table .why strong").all_inner_texts()
    assert sorted(states) == ["failed", "killed", "missing", "running", "unreadable", "unreadable"]


def test_the_table_is_filtered_by_its_words(open_report):
    page = open_report("grid")
    field = page.get_by_label("Show only rows with")
    field.focus()
    page.keyboard.type("l1_NORMED null")
    count = shown_rows(page).count()
    assert 0 < count < 24
    assert all("l1_normed" in text and "null" in text for text in shown_rows(page).all_inner_texts())
    assert page.locator("#shown").inner_text() == f"{count} of 24 jobs"
    field.fill("no such word")
    assert shown_rows(page).count() == 0
    field.fill("")
    assert shown_rows(page).count() == 24


def test_the_heat_map_shows_other_options_and_slices(open_report):
    page = open_report("grid")
    least = [float(text.split()[0]) for text in column(page, "robust").all_inner_texts()]
    first = cells(page)
    values = [float(cell.split()[0]) for row in first for cell in row.split("\t")[1:]]
    assert min(values) == min(least)
    page.get_by_label("lr", exact=True).select_option("0.1")
    sliced = cells(page)
    assert sliced != first
    rows = [row for row in page.locator("#table tbody tr").all_inner_texts() if row.split("\t")[2] == "0.1"]
    remaining = {cell for row in sliced for cell in row.split("\t")[1:]}
    assert remaining <= {row.split("\t")[4].split("\n")[0].replace("★", "") for row in rows}
    across, down = page.get_by_label("across"), page.get_by_label("down")
    before = [across.evaluate("(s) => s.selectedOptions[0].text"), down.evaluate("(s) => s.selectedOptions[0].text")]
    across.select_option(before[1])
    after = [across.evaluate("(s) => s.selectedOptions[0].text"), down.evaluate("(s) => s.selectedOptions[0].text")]
    assert after == before[::-1]
    assert sorted("\t".join(row.split("\t")[1:]) for row in cells(page)) != sorted(sliced)
    across.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.ariaLabel") == "across"


def test_curves_are_switched_between_steps_and_passes_and_hidden(open_report):
    page = open_report("radii")
    steps = page.evaluate(DRAWN, "progress")
    page.get_by_label("steps", exact=True).focus()
    page.keyboard.press("ArrowRight")
    passes = page.evaluate(DRAWN, "progress")
    assert [trace["y"] for trace in steps] == [trace["y"] for trace in passes]
    assert steps[0]["x"] != passes[0]["x"]
    assert "passes" in page.locator("#progress .summary").inner_text()
    lines = len(page.evaluate(DRAWN, "curves"))
    button = page.locator("#curves .legend button").first
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert len(page.evaluate(DRAWN, "curves")) == lines - 2  # the line and its band
    button.click()
    assert len(page.evaluate(DRAWN, "curves")) == lines


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_another_run_shows_its_own_samples_and_classes(open_report, by):
    page = open_report("radii")
    shown = page.locator("[data-run]:visible")
    before = shown.inner_text()
    if by == "mouse":
        page.get_by_label("Job", exact=True).select_option(index=2)
    else:
        page.get_by_label("Job", exact=True).focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
    assert shown.count() == 1
    assert shown.get_attribute("data-run") == "2"
    assert shown.inner_text() != before
    assert shown.get_by_role("table").count() == 3


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_samples_are_enlarged_one_after_another(open_report, by):
    page = open_report("one")
    samples = page.locator(".zoom")
    assert samples.count() > 6
    dialog = page.get_by_role("dialog")
    samples.nth(1).focus()
    if by == "mouse":
        samples.nth(1).click()
        dialog.get_by_role("button", name="Next").click()
    else:
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowRight")
    expected = samples.nth(2).locator("img").evaluate_all("(images) => images.map((image) => image.src)")
    assert dialog.locator("img").evaluate_all("(images) => images.map((image) => image.src)") == expected
    page.wait_for_function("[...document.querySelectorAll('dialog img')].every((image) => image.naturalWidth === 64)")
    if by == "mouse":
        dialog.get_by_role("button", name="Close").click()
    else:
        page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    name = samples.nth(2).get_attribute("aria-label")
    page.wait_for_function("(name) => document.activeElement.getAttribute('aria-label') === name", arg=name)


def test_the_theme_is_switched_and_plots_with_it(open_report):
    page = open_report("radii")
    ink = "getComputedStyle(document.querySelector('#curves .xtick text')).fill"
    before = page.evaluate(ink)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ink) != before
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(ink) == before


def test_a_command_is_copied(open_report):
    page = open_report("one")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = page.locator(".command").first
    command.get_by_role("button").click()
    command.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == command.locator("code").inner_text()
    assert copied.startswith("raiopt rerun ")


def test_the_keyboard_goes_first_to_the_results(open_report):
    page = open_report("one")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"


def test_hostile_names_are_shown_as_text(open_report):
    page = open_report("hostile")
    for details in page.locator("details").all():
        details.locator("summary").click()
    for choice in page.locator("#map select").all():
        choice.select_option(index=1)
    page.locator("#run").select_option(index=1)
    page.locator(".zoom:visible").first.click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)  # an image that fails to load would have run its handler by now
    assert page.locator("script").count() == 4
    assert page.locator("img").evaluate_all("(all) => all.every((image) => image.src.startsWith('data:image/webp'))")
    assert page.locator("a").evaluate_all("(all) => all.every((a) => a.getAttribute('href')?.startsWith('#'))")
    text = page.locator("body").inner_text()
    assert all(name in text for name in (ALERT, IMAGE, LINK, NAMES[3].rstrip("\u2028")))
    ticks = page.locator("#parallel svg text, #map svg text").all_text_contents()
    assert {ALERT, IMAGE, LINK} <= set(ticks)


def test_foreign_scripts_are_refused(browser):
    page = browser.new_page()
    page.goto(address("one"))
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        })"""
    )
    assert refused.startswith("script-src")
    assert page.evaluate("window.ran") is None
    page.close()
