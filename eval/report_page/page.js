"use strict";
// Show the stories that fit all four filters; a chosen variant hides the others, a chosen verdict dims the others.
const field = (name) => document.getElementById(name);
const cards = [...document.querySelectorAll(".card")].map((card) => ({
  card,
  scenes: card.dataset.scenes,
  text: card.textContent.toLowerCase().replace(/\s+/g, " "),
  outcomes: [...card.querySelectorAll("[data-variant]")],
}));

function apply() {
  const variant = field("variant").value;
  const context = field("context").value;
  const verdict = field("verdict").value;
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { card, scenes, text, outcomes } of cards) {
    let fits = false;
    for (const outcome of outcomes) {
      const chosen = !variant || outcome.dataset.variant === variant;
      const judged = !verdict || outcome.dataset.verdict.split(" ").includes(verdict);
      outcome.hidden = !chosen;
      outcome.classList.toggle("dim", !judged);
      fits = fits || (chosen && judged);
    }
    card.hidden = !fits || (context && scenes !== context) || !words.every((word) => text.includes(word));
    shown += card.hidden ? 0 : 1;
  }
  field("shown").textContent = `${shown} of ${cards.length} stories`;
  field("none").hidden = shown > 0;
}

for (const name of ["variant", "context", "verdict"]) field(name).addEventListener("change", apply);
field("search").addEventListener("input", apply);
field("clear").addEventListener("click", () => {
  for (const name of ["variant", "context", "verdict", "search"]) field(name).value = "";
  apply();
});
apply();
