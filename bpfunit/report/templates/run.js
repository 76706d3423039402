"use strict";
const tests = [...document.querySelectorAll("details.test")];
const search = document.getElementById("search");
const none = document.getElementById("none");

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const show = document.querySelector("input[name=show]:checked").value;
  let shown = 0;
  for (const test of tests) {
    const wanted = (show === "all" || test.classList.contains(show)) &&
      words.every((word) => test.dataset.name.includes(word));
    test.hidden = !wanted;
    shown += wanted;
  }
  for (const section of document.querySelectorAll("section")) {
    section.hidden = !section.querySelector("details.test:not([hidden])");
  }
  none.hidden = shown > 0;
}

function openTarget() {
  const test = document.getElementById(location.hash.slice(1)) ||
    document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (test) {
    test.open = true;
    test.scrollIntoView();
  }
}

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.querySelector(".controls").hidden = false;
search.addEventListener("input", filter);
for (const radio of document.querySelectorAll("input[name=show]")) {
  radio.addEventListener("change", filter);
}
addEventListener("hashchange", openTarget);
openTarget();
