"use strict";
// Show the stories that fit all filters. A chosen variant hides the others and a chosen verdict dims the others; with a
// second variant only these two are shown, side by side, and the verdict filter gives way to how they differ.
const field = (name) => document.getElementById(name);
const cards = [...document.querySelectorAll(".card")].map((card) => ({
  card,
  scenes: card.dataset.scenes,
  text: card.textContent.toLowerCase().replace(/\s+/g, " "),
  outcomes: [...card.querySelectorAll("[data-variant]")],
}));
const has = (outcome, verdict) => outcome.dataset.verdict.split(" ").includes(verdict);

function fitsAlone(outcomes, variant) {
  const verdict = field("verdict").value;
  let fits = false;
  for (const outcome of outcomes) {
    const chosen = !variant || outcome.dataset.variant === variant;
    const judged = !verdict || has(outcome, verdict);
    outcome.hidden = !chosen;
    outcome.classList.toggle("dim", !judged);
    fits = fits || (chosen && judged);
  }
  return fits;
}

function fitsPair(outcomes, first, second) {
  const [one, two] = [first, second].map((key) => outcomes.find((outcome) => outcome.dataset.variant === key));
  for (const outcome of outcomes) {
    outcome.hidden = outcome !== one && outcome !== two;
    outcome.classList.remove("dim");
    outcome.classList.toggle("first", outcome === one);
  }
  const wanted = field("difference").value;
  if (!wanted) return Boolean(one || two);
  if (!one || !two || has(one, "unscored") || has(two, "unscored")) return false;
  const [right, also] = [has(one, "yes"), has(two, "yes")];
  const kinds = { any: right !== also, first: right && !also, second: !right && also, both: right && also, neither: !right && !also };
  return kinds[wanted];
}

function apply() {
  const variant = field("variant").value;
  const against = field("against").value;
  const pair = variant && against && variant !== against;
  const context = field("context").value;
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { card, scenes, text, outcomes } of cards) {
    const fits = pair ? fitsPair(outcomes, variant, against) : fitsAlone(outcomes, variant);
    card.classList.toggle("compared", Boolean(pair));
    card.hidden = !fits || (context && scenes !== context) || !words.every((word) => text.includes(word));
    shown += card.hidden ? 0 : 1;
  }
  for (const line of document.querySelectorAll("p.pair")) {
    line.hidden = !pair || line.dataset.first !== variant || line.dataset.second !== against;
  }
  field("differing").hidden = !pair;
  field("verdict").parentElement.hidden = pair;
  field("shown").textContent = `${shown} of ${cards.length} stories`;
  field("none").hidden = shown > 0;
}

for (const name of ["variant", "against", "context", "verdict", "difference"]) field(name).addEventListener("change", apply);
field("search").addEventListener("input", apply);
for (const link of document.querySelectorAll("a[data-first]")) {
  link.addEventListener("click", () => {
    field("variant").value = link.dataset.first;
    field("against").value = link.dataset.second;
    field("difference").value = "any";
    apply();
  });
}
field("clear").addEventListener("click", () => {
  for (const name of ["variant", "against", "context", "verdict", "search"]) field(name).value = "";
  field("difference").value = "any";
  apply();
});
apply();
